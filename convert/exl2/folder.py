"""From a model to an EXL2 folder: measure, choose, quantize, write; each step is kept beside the output until the folder is whole.

``OUT.qconv-exl2/`` holds the measurement, the residual streams and the packed matrices while the job is at work. A run of the same job (model,
text, rate and so on) takes them over; one of another starts anew, but keeps a measurement that is still true.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ... import __version__
from ...errors import FormatError, UsageError
from ...formats.base import Layout, Model, Tensor
from ...formats.huggingface.out.writer import BELONGINGS
from ...formats.whole_file import whole_file
from ...plugins.manager import Registries
from ...quantizers.base import Encoding
from ...quantizers.rounding.exl2_options import Exl2Option, head_options
from ...quantizers.rounding.exl2_packing import pack_exl2
from ...quantizers.rounding.exl2_rounding import Exl2Matrix
from ...runtime.building.network import load_network
from ...runtime.measuring.windows import token_digest
from ..calibration.streams import Streams
from ..folders import check_folder
from ..jobs import run_plan
from ..locking import open_locked
from ..measure import Subject
from ..plan import Plan
from ..quantized_folder import in_float16, plan_folder
from .measurement import Measured, Strategy, check_rate, choose_rows, read_measurement, write_measurement
from .modules import Exl2Linear, Exl2Module, Exl2Subject, exl2_subject
from .passes import Exl2Job, measure_modules, quantize_modules, with_swaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...runtime.measuring.windows import Windows

__all__ = ["Exl2Request", "Exl2Result", "check_request", "work_folder", "write_exl2"]

VERSION: Final = "0.3.2"
"""The version of ExLlamaV2 whose format this is."""

_TYPES: Final = {"int32": "I32", "int16": "I16", "float16": "F16"}
_SUFFIXES: Final = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")


@dataclass(frozen=True)
class Exl2Request:
    """What is asked for.

    Attributes:
        bpw: bits per weight of the matrices of all layers.
        head_bits: of the output: 2, 3, 4, 5, 6 or 8.
        dataset: name of the calibration text, for the configuration.
        measurement: file to take the measurement from, or where it does not exist to write it to; or None.
        split_max_size: largest number of tensor bytes per file, or None.
        force: replace an existing output.
        threads: worker threads, None for the number of processors.
        feedback: whether errors are made up for; False: rounding to nearest, to compare with.
    """

    bpw: float
    head_bits: int = 6
    dataset: str = "(default)"
    measurement: Path | None = None
    split_max_size: int | None = None
    force: bool = False
    threads: int | None = None
    feedback: bool = True


@dataclass(frozen=True)
class Exl2Result:
    """What a finished job leaves.

    Attributes:
        path: the folder.
        bits_per_weight: of the matrices of all layers, as they were written.
        nbytes: of the folder.
        strategy: what was chosen.
        resumed: modules that an earlier run had quantized.
        unseen: matrices of experts that no token was sent to, rounded as if all inputs were alike.
    """

    path: Path
    bits_per_weight: float
    nbytes: int
    strategy: Strategy
    resumed: int
    unseen: tuple[str, ...] = ()


def work_folder(output: Path) -> Path:
    """Return the folder of a job at work."""
    return output.with_name(output.name + ".qconv-exl2")


def check_request(output: Path, request: Exl2Request, sources: tuple[Path, ...]) -> Exl2Option:
    """Return the option of the output matrix; raises UsageError or OutputExistsError before any work is done."""
    options = head_options()
    if request.head_bits not in options:
        raise UsageError(f"--head-bits is one of {', '.join(map(str, options))}, not {request.head_bits}")
    check_folder(Layout((), output, BELONGINGS), output, sources, request.force)
    return options[request.head_bits]


def write_exl2(
    subject: Subject,
    registries: Registries,
    windows: Windows,
    output: Path,
    request: Exl2Request,
    progress: Callable[[str, int], Callable[[], None]] = lambda label, total: lambda: None,
) -> Exl2Result:
    """Make an EXL2 folder of a model.

    Args:
        subject: the model.
        registries: of encodings and architectures.
        windows: the calibration text.
        output: the folder.
        request: what is asked for.
        progress: given what begins and its number of steps, returns what is called for each.

    An interrupted run is continued by the next of the same job. Raises OutputExistsError, UsageError for a rate out of reach, and what
    :func:`.exl2.modules.exl2_subject` raises.
    """
    head = check_request(output, request, subject.model.files)
    model, swaps = with_swaps(subject.model)
    network = load_network(model, registries.architectures.values())
    found = exl2_subject(subject.model, network, registries.open_context())
    measuring = _digest(__version__, subject.identity.digest, token_digest(windows), windows.bos, windows.context)
    taken = _given(found, request)
    check_rate(found, {it.name: taken[it.name].rows if taken else it.table for it in found.modules}, request.bpw)
    folder = work_folder(output)
    folder.mkdir(exist_ok=True)
    with open_locked(folder / "lock"):
        job = Exl2Job(found, network, swaps, windows)
        known = taken or _measure(job, folder / "measure", request, measuring, progress)
        strategy = choose_rows(found, known, request.bpw)
        rows = [[module.name, *map(str, strategy.rows[module.name])] for module in found.modules]
        store = _Store(folder / "quantize", _digest(measuring, rows, str(head), request.feedback))
        resumed = len(found.modules)
        if not store.whole:
            streams = Streams(store.folder / "all", job.tokens, network.configuration.hidden)
            advance = progress("quantize", len(found.modules) + 1)
            job = replace(job, advance=advance, feedback=request.feedback, unseen=store.note_unseen)
            resumed = quantize_modules(job, streams, strategy.rows, head, store.save, request.threads)
            store.seal()
        plan = _plan(subject.model, found, registries.encodings, store, output, request, windows)
        done = run_plan(plan, request.force, lambda count: None)
        unseen = store.unseen
    shutil.rmtree(folder)
    return Exl2Result(done.paths[0], strategy.bits / found.weights, plan.layout.size, strategy, resumed, unseen)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _folder_of(job: str, folder: Path) -> Path:
    """Return the folder, empty but for ``job.json`` unless an earlier run of the same job has left something in it."""
    path = folder / "job.json"
    text = json.dumps({"job": job}).encode()
    if not path.is_file() or path.read_bytes() != text:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        with whole_file(path) as file:
            file.write(text)
    return folder


def _given(subject: Exl2Subject, request: Exl2Request) -> dict[str, Measured]:
    """Return the measurement in the file that the user names, empty where there is none; raises FormatError where it lacks a module."""
    path = request.measurement
    if path is None or not path.is_file():
        return {}
    known = read_measurement(path, subject)
    missing = [module.name for module in subject.modules if module.name not in known]
    if missing:
        raise FormatError(f"lacks {missing[0]}", path=path, remedy="Name a whole measurement of this model.")
    return known


def _measure(
    job: Exl2Job, folder: Path, request: Exl2Request, measuring: str, progress: Callable[[str, int], Callable[[], None]]
) -> dict[str, Measured]:
    """Return the measurement; what an earlier run has left to make of it is made."""
    own = _folder_of(measuring, folder) / "measurement.json"
    known = read_measurement(own, job.subject) if own.is_file() else {}
    if len(known) < len(job.subject.modules):
        left = sum(len(module.table) for module in job.subject.modules if module.name not in known)

        def done(module: Exl2Module, accuracies: list[float]) -> None:
            known[module.name] = Measured(module.table, tuple(accuracies))
            write_measurement(own, job.subject, known)

        streams = Streams(folder / "all", job.tokens, job.network.configuration.hidden)
        accuracies = {name: it.accuracies for name, it in known.items()}
        measure_modules(replace(job, advance=progress("measure", left)), streams, accuracies, done, request.threads)
    if request.measurement is not None:
        write_measurement(request.measurement, job.subject, known)
    return known


class _Store:
    """Packed matrices in a folder, a file for each tensor."""

    def __init__(self, folder: Path, job: str) -> None:
        self.folder = _folder_of(job, folder)

    @property
    def whole(self) -> bool:
        """Whether every matrix is there."""
        return (self.folder / "whole").is_file()

    def seal(self) -> None:
        """Say that every matrix is there."""
        with whole_file(self.folder / "whole"):
            pass

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of matrices whose inputs no token of the text met."""
        path = self.folder / "unseen"
        return tuple(dict.fromkeys(path.read_text().split())) if path.is_file() else ()

    def note_unseen(self, linear: Exl2Linear) -> None:
        """Keep the name of such a matrix."""
        with (self.folder / "unseen").open("a") as file:
            file.write(f"{linear.name}\n")

    def path(self, name: str) -> Path:
        """Return the file of a tensor."""
        return self.folder / f"{name}.npy"

    def save(self, linear: Exl2Linear, matrix: Exl2Matrix) -> None:
        """Keep a matrix."""
        for suffix, array in pack_exl2(matrix).items():
            with whole_file(self.path(f"{linear.name}.{suffix}")) as file:
                np.save(file, array.astype(array.dtype.newbyteorder("<"), copy=False), allow_pickle=False)

    def tensors(self, linear: Exl2Linear, encodings: Mapping[str, Encoding]) -> list[Tensor]:
        """Return the tensors of a matrix that was kept."""
        found = []
        for suffix in _SUFFIXES:
            name = f"{linear.name}.{suffix}"
            array = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
            encoding = encodings[_TYPES[array.dtype.name]]
            found.append(Tensor(name, array.shape, encoding, partial(_rows, array), linear.weight.origin))
        return found


def _rows(array: NDArray[Any], start: int, stop: int) -> NDArray[np.uint8]:
    rows = array.reshape(-1, array.shape[-1])[start:stop]
    return np.array(rows).view(np.uint8)


def _plan(
    model: Model,
    subject: Exl2Subject,
    encodings: Mapping[str, Encoding],
    store: _Store,
    output: Path,
    request: Exl2Request,
    windows: Windows,
) -> Plan:
    """Return the plan of the folder: packed matrices in the places of those that they stand for, all else in float16."""
    linears: dict[str, list[Exl2Linear]] = {}
    for module in subject.modules:
        for linear in module.linears:
            linears.setdefault(linear.stored, []).append(linear)
    head = f"{subject.head.name}.weight"
    tensors: list[Tensor] = []
    for name, tensor in subject.prepared.tensors.items():
        if name in linears:
            tensors += [it for linear in linears[name] for it in store.tensors(linear, encodings)]
        elif name != head:
            tensors.append(in_float16(tensor, encodings["F16"]))
    tensors += store.tensors(subject.head, encodings)
    return plan_folder(
        replace(subject.prepared, path=model.path, files=(*model.files, store.folder / "job.json")),
        tensors,
        output,
        _quantization(request, windows),
        target="exl2",
        split_max_size=request.split_max_size,
        threads=1 if request.threads is None else request.threads,
    )


def _quantization(request: Exl2Request, windows: Windows) -> dict[str, Any]:
    """Return what ExLlamaV2 says about a quantized model."""
    rows, length = (int(it) for it in windows.tokens.shape)
    return {
        "quant_method": "exl2",
        "version": VERSION,
        "bits": request.bpw,
        "head_bits": request.head_bits,
        "calibration": {"rows": rows, "length": length, "dataset": request.dataset},
    }
