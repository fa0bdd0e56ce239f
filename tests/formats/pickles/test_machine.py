"""The pickle machine: what it makes, and that it stops at everything else, naming it, before anything is run."""

from __future__ import annotations

import pickletools
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch_files as made
from torch_files import counts, dictionary, integer, items, name, pickled, storage, tensor, text

from qconv.errors import FormatError, TruncatedError
from qconv.formats.pickles.machine import run_pickle
from qconv.formats.pickles.rebuild import Storage, TensorView
from qconv.formats.pickles.stream import Budget, PickleStream
from qconv.formats.positional import PositionalFile

# every instruction that may occur
ACCEPTED = set("\x80\x95N\x88\x89JKM\x8aG\x8cX}])(t\x85\x86\x87aesubqr\x94hjc\x93RQ.")
FLOAT = storage("0", "Float", 12)


def run(path: Path, content: bytes, storages: dict[str, Storage] | None = None, with_views: bool = False) -> object:
    path.write_bytes(content)
    file = PositionalFile(path)
    try:
        stream = PickleStream(file, 0, file.size)
        return run_pickle(stream, Budget(file), {} if storages is None else storages, with_views=with_views)
    finally:
        file.close()


def refused(path: Path, content: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        run(path, content)
    assert caught.value.path == path
    assert caught.value.offset is not None
    assert caught.value.remedy
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.pkl"


def test_values(path: Path) -> None:
    value = dictionary(
        {
            "none": b"N",
            "truth": b"\x88",
            "lie": b"\x89",
            "small": b"K\xff",
            "medium": b"M\xff\xff",
            "negative": integer(-5),
            "long": integer(1 << 40),
            "no bytes": b"\x8a\x00",
            "float": b"G" + struct.pack(">d", 0.1),
            "short text": b"\x8c\x02\xc3\xa9",
            "list": b"](K\x01K\x02eK\x03a",
            "tuples": items(b")", b"K\x01\x85", b"K\x01K\x02\x86", b"K\x01K\x02K\x03\x87"),
            "type": name("torch", "bfloat16"),
            "size": name("torch", "Size") + counts((2, 3)) + b"\x85R",
            "memo": b"]q\x00h\x00\x86",
            "far memo": b"]r\x07\x00\x00\x00j\x07\x00\x00\x00\x86",
            "next memo": b"]\x94h\x02\x86",
        }
    )
    found = run(path, b"\x80\x04\x95" + bytes(8) + value + b".")
    assert isinstance(found, dict)
    assert str(found.pop("type")) == "Dtype(name='BF16')"
    assert found == {
        "none": None,
        "truth": True,
        "lie": False,
        "small": 255,
        "medium": 65535,
        "negative": -5,
        "long": 1 << 40,
        "no bytes": 0,
        "float": 0.1,
        "short text": "é",
        "list": [1, 2, 3],
        "tuples": ((), (1,), (1, 2), (1, 2, 3)),
        "size": (2, 3),
        "memo": ([], []),
        "far memo": ([], []),
        "next memo": ([], []),
    }


def test_tensors_in_every_spelling(path: Path) -> None:
    plain = TensorView(Storage("0", "F32", 12), "F32", 2, (2, 5), (5, 1))
    geometry = FLOAT, integer(2), counts((2, 5)), counts((5, 1))
    v2 = items(*geometry, b"\x89", made.ORDERED)
    parameter = name("torch._utils", "_rebuild_parameter")
    untyped = (
        items(text("storage"), name("torch.storage", "UntypedStorage"), text("1"), text("cuda:0"), integer(7)) + b"Q"
    )
    v3 = items(untyped, integer(1), counts((2,)), counts((1,)), b"\x89", made.ORDERED, name("torch", "float16"))
    stacked = text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93"
    kind = name("torch.nn.parameter", "Parameter")
    from_type = items(name("torch._utils", "_rebuild_tensor_v2"), kind, v2, b"}")
    storages: dict[str, Storage] = {}
    value = dictionary(
        {
            "first": name("torch._utils", "_rebuild_tensor") + items(*geometry) + b"R",
            "second": name("torch._utils", "_rebuild_tensor_v2") + v2 + b"R",
            "with metadata": name("torch._utils", "_rebuild_tensor_v2")
            + items(*geometry, b"\x89", made.ORDERED, b"}")
            + b"R",
            "third": name("torch._utils", "_rebuild_tensor_v3") + v3 + b"R",
            "parameter": parameter + items(tensor(FLOAT, 2, (2, 5), (5, 1)), b"\x88", made.ORDERED) + b"R",
            "from stack": stacked + v2 + b"R",
            "attributes": name("torch._tensor", "_rebuild_from_type_v2") + from_type + b"R",
        }
    )
    found = run(path, pickled(value), storages)
    assert isinstance(found, dict)
    half = found.pop("third")
    assert half == TensorView(Storage("1", None, 7), "F16", 1, (2,), (1,))
    assert all(view == plain for view in found.values())
    assert storages == {"0": Storage("0", "F32", 12), "1": Storage("1", None, 7)}
    assert storages["1"].nbytes == 7


def test_an_ordered_dictionary_may_have_a_state(path: Path) -> None:
    state = made.ORDERED + b"(" + text("a") + b"K\x01u" + dictionary({"_metadata": made.ORDERED}) + b"b"
    assert run(path, pickled(state)) == {"a": 1}
    assert "no OrderedDict" in refused(path, pickled(b"}}b")).message
    assert "no OrderedDict" in refused(path, pickled(b"]}b")).message


@pytest.mark.parametrize(
    "opcode", [known for known in pickletools.opcodes if known.code not in ACCEPTED], ids=lambda op: op.name
)
def test_other_instructions_are_refused_by_name(path: Path, opcode: pickletools.OpcodeInfo) -> None:
    content = pickled(b"]]]" + opcode.code.encode("latin-1") + bytes(300))
    error = refused(path, content)
    assert error.offset == 5
    assert f"the instruction {opcode.name} " in error.message


def test_bytes_that_are_no_instruction(path: Path) -> None:
    assert "0x00" in refused(path, b"\x80\x02\x00").message


EVIL = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "print"),
    ("builtins", "getattr"),
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict.__class__"),
    ("collections.OrderedDict", ""),
    ("torch", "FloatStorage.from_file"),
    ("argparse", "Namespace"),
    ("__main__", "run"),
]


@pytest.mark.parametrize(("module", "function"), EVIL)
@pytest.mark.parametrize("stacked", [False, True])
def test_other_names_are_refused(path: Path, module: str, function: str, stacked: bool) -> None:
    asked = text(module) + text(function) + b"\x93" if stacked else name(module, function)
    error = refused(path, pickled(b"]" + asked + text("echo ran") + b"\x85R"))
    assert f"asks for {module}.{function}," in error.message
    assert error.offset == (3 + len(asked) - 1 if stacked else 3)


def test_nothing_is_imported_and_nothing_runs(path: Path) -> None:
    """A module that leaves a trace when it is imported, asked for in every way that a pickle has."""
    folder = path.parent
    trace = folder / "trace"
    (folder / "canary.py").write_text(
        f"open({str(trace)!r}, 'w').close()\ndef sing(*words): open({str(trace)!r}, 'w').close()\n"
    )
    calls = [
        name("canary", "sing") + b")R",
        text("canary") + text("sing") + b"\x93)R",
        b"(" + text("x") + b"icanary\nsing\n",
        b"(" + name("canary", "sing") + b"o",
        name("canary", "sing") + b")\x81",
        name("torch._tensor", "_rebuild_from_type_v2")
        + items(name("canary", "sing"), name("torch", "Tensor"), b")", b"N")
        + b"R",
    ]
    script = (
        "import sys; from pathlib import Path; from qconv.formats.pickles import read_pickled_checkpoint as read\n"
        "from qconv.errors import FormatError; from qconv.formats.positional import PositionalFile\n"
        "try: read(PositionalFile(Path(sys.argv[1])))\n"
        "except FormatError as error: print(error)\n"
        "print('torch' in sys.modules or 'canary' in sys.modules)"
    )
    for call in calls:
        value = dictionary({"tok_embeddings.weight": call})
        for content in (made.archive(made.members(pickled(value), {})), made.legacy_file(value, [], [])):
            path.write_bytes(content)
            done = subprocess.run(
                [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=folder, check=True
            )
            message, imported = done.stdout.splitlines()
            assert "canary.sing" in message or "instruction INST" in message
            assert imported == "False"
            assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"R", "finds nothing to work on"),
        (b"]R", "finds nothing to work on"),
        (b"])R", "calls something that is no function"),
        (FLOAT + b")R", "calls something that is no function"),
        (name("torch", "FloatStorage") + b")R", "calls something that is no function"),
        (name("collections", "OrderedDict") + b"]R", "calls something that is no function"),
        (name("collections", "OrderedDict") + b"]\x85R", "made with contents"),
        (name("torch", "Size") + b")R", "torch.Size"),
        (b"t", "finds no mark"),
        (b"K\x01\x86", "too few values"),
        (b"}a", "something that is no list|nothing to work on"),
        (b"K\x01K\x02a", "something that is no list"),
        (b"}(K\x01e", "something that is no list"),
        (b"](K\x01K\x02u", "no dictionary"),
        (b"}(K\x01u", "no dictionary, or are no pairs"),
        (b"}(K\x01K\x02u", "a key of type int"),
        (b"}(\x88K\x02u", "a key of type bool"),
        (b"}()K\x02u", "a key of type tuple"),
        (dictionary({"a": b"N"}) + text("a") + b"Ns", "the key a twice"),
        (b"]]", "values left over"),
        (b"(]", "values left over"),
        (b"q\x00", "nothing is there to remember"),
        (b"]r\xff\xff\xff\xff", "no place 4294967295"),
        (b"h\x05", "nothing was remembered at 5"),
        (b"X\xff\xff\xff\xff", "longer than any name"),
        (b"X\x02\x00\x00\x00\xff\xfe", "no UTF-8"),
        (b"\x8a\x11" + bytes(17), "integer of 17 bytes"),
        (b"c" + b"a" * 300, "more than 256 bytes"),
        (b"c\xff\n\n", "no ASCII"),
        (b"K\x01K\x02\x93", "no string"),
        (b"\x80\x01", "protocol 1"),
        (b"\x80\x06", "protocol 6"),
        (b"(" * 1025, "marks are open"),
        (b"NQ", "persistent id"),
        (items(b"N", b"N", b"N", b"N", b"N") + b"Q", "does not name a storage"),
        (items(text("storage"), name("torch", "Tensor"), text("0"), text("cpu"), b"K\x01") + b"Q", "does not name a storage"),
        (storage("../0", "Float", 1), "no decimal number"),
        (storage("٣", "Float", 1), "no decimal number"),
        (storage("", "Float", 1), "no decimal number"),
        (storage("0", "Float", -1), "of a wrong type"),
        (storage("0", "Float", 1, b"N"), "not the five items"),
        (storage("0", "Float", 1) + storage("0", "Half", 1) + b"\x86", "described in two ways"),
        (storage("0", "Float", 1) + storage("0", "Float", 2) + b"\x86", "described in two ways"),
        (tensor(b"N", 0, (1,), (1,)), "something else than a storage"),
        (tensor(FLOAT, -1, (1,), (1,)), "non-negative"),
        (tensor(FLOAT, 0, (-1,), (1,)), "non-negative"),
        (tensor(FLOAT, 0, (2,), (-1,)), "non-negative"),
        (tensor(FLOAT, 0, (1 << 63,), (1,)), "non-negative"),
        (tensor(FLOAT, 0, (2, 2), (1,)), "2 sizes and 1 strides"),
        (tensor(FLOAT, 0, (1,) * 9, (1,) * 9), "9 sizes"),
        (tensor(FLOAT, 0, (13,), (1,)), "element 12 of storage 0, which has 12"),
        (tensor(FLOAT, 12, (1,), (1,)), "element 12 of storage 0, which has 12"),
        (tensor(FLOAT, 0, (2, 2), (11, 1)), "element 12 of storage 0, which has 12"),
        (tensor(FLOAT, 0, (2,), (1 << 61,)), "element 2305843009213693952"),
        (tensor(FLOAT, 0, (1 << 31, 1 << 31), (0, 0)), "more elements than its storage"),
        (tensor(FLOAT, 0, (1 << 61, 0), (0, 0)), "more elements than its storage"),
        (tensor(FLOAT, 0, (2, (1 << 18) + 1), (0, 0)), "more elements than its storage"),
        (name("torch._utils", "_rebuild_tensor_v2") + items(FLOAT, b"N") + b"R", "2 arguments"),
        (name("torch._utils", "_rebuild_parameter") + items(b"N", b"N", b"N") + b"R", "not made of a tensor"),
        (name("torch._tensor", "_rebuild_from_type_v2") + items(b"N", b"N", b"N", b"N") + b"R", "a known class"),
        (name("torch", "Size") + items(items(b"\x88")) + b"R", "torch.Size"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(path: Path, value: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        run(path, pickled(value))


def test_pickles_that_end_early(path: Path) -> None:
    whole = pickled(dictionary({"a": tensor(FLOAT, 0, (3, 4), (4, 1)), "b": integer(1 << 40)}))
    for length in range(len(whole)):
        with pytest.raises(TruncatedError, match="the pickle ends"):
            run(path, whole[:length])


def test_views_of_storages(path: Path) -> None:
    """Before torch 1.6 a storage could be named as a part of another."""
    view = items(text("9"), integer(4), integer(6))
    found = run(path, pickled(tensor(storage("0", "Float", 12, view), 1, (5,), (1,))), with_views=True)
    assert found == TensorView(Storage("0", "F32", 12), "F32", 5, (5,), (1,))
    for bad in (items(text("9"), integer(8), integer(6)), items(text("9")), b"K\x01"):
        with pytest.raises(FormatError, match="view of storage 0"):
            run(path, pickled(storage("0", "Float", 12, bad)), with_views=True)
    with pytest.raises(FormatError, match="element 6 of storage 0, which has 6"):
        run(path, pickled(tensor(storage("0", "Float", 12, view), 1, (6,), (1,))), with_views=True)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]" + b"}" * (1 << 20),
        b"\x80\x02]" + b"}\x85" * (1 << 19),
        b"\x80\x02]" + b"".join(b"r" + struct.pack("<I", i) for i in range(1 << 18)),
        b"\x80\x02]q\x00(" + b"h\x00" * (1 << 19) + b"e",
        b"\x80\x02}" + b"(" + b"h\x00" * (1 << 19),
    ],
)
def test_memory_is_bounded(path: Path, content: bytes) -> None:
    """Short instructions that make much more than they are."""
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(FormatError):
        run(path, content)
    elapsed, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (5 << 20) + 10 * len(content)
    assert elapsed < 20  # of this process, and tracemalloc makes it slow


def test_self_reference_and_depth(path: Path) -> None:
    """A list in itself, and ten thousand tuples in one another, neither loop nor overflow the stack."""
    found = run(path, pickled(b"]q\x00h\x00a"))
    assert isinstance(found, list)
    assert found[0] is found
    assert isinstance(run(path, pickled(b")" + b"\x85" * 10_000)), tuple)
