"""``qconv perplexity``: how well a model predicts a text, and how far it lies from another."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ...runtime.measuring.bases import Base
    from ...runtime.measuring.divergence import Summary
    from ...runtime.measuring.identity import Text
    from ...runtime.measuring.losses import Mean
    from ...runtime.measuring.perplexity import Sink
    from ...runtime.measuring.windows import Windows
    from ..measure import Cut, Subject

__all__ = ["register"]

_FILES = "Files"
_CONTEXT = 512


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("perplexity")(perplexity)


def perplexity(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file or folder of any readable format.")],
    text: options.Texts = None,
    context: options.Context = _CONTEXT,
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", help="Move the window by N tokens, score the last N of each."),
    ] = None,
    chunks: options.Chunks = None,
    cache_type: options.CacheType = "f32",
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FILE", help="Compare with the model of this base.", rich_help_panel=_FILES),
    ] = None,
    save_logits: Annotated[
        Path | None,
        typer.Option("--save-logits", metavar="FILE", help="Write a base as llama.cpp does.", rich_help_panel=_FILES),
    ] = None,
    save_base: Annotated[
        Path | None,
        typer.Option(
            "--save-base",
            metavar="FILE",
            help="Write a compact base, which knows model, tokenizer and texts.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    base_tokens: Annotated[
        int,
        typer.Option(
            "--base-tokens", min=1, metavar="N", help="Tokens that a compact base keeps.", rich_help_panel=_FILES
        ),
    ] = 256,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", metavar="FILE.svg", help="Draw the divergence (needs --base).", rich_help_panel=_FILES
        ),
    ] = None,
    as_arch: options.AsArch = None,
    pre_tokenizer: options.PreTokenizer = None,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure the perplexity of texts, as llama.cpp does position for position, and the divergence from a base."""
    from ...errors import UsageError
    from ...formats.whole_file import refuse_existing
    from ...plugins.manager import load_plugins
    from ...runtime.cache import CACHE_TYPES
    from ...runtime.measuring.bases import open_base
    from ...runtime.measuring.identity import read_text
    from ..figure import check_figure
    from ..measure import Cut, open_subject
    from ..settings import choose
    from .running import identified, tell_notes

    kind = choose("--cache-type", cache_type.upper(), CACHE_TYPES)
    if not text and base is None:
        raise UsageError("--text is missing", remedy="Name one or more text files, or a --base that holds tokens.")
    if figure is not None and base is None:
        raise UsageError("--figure shows a divergence, so it needs --base")
    if save_logits is not None and stride is not None:
        raise UsageError("llama.cpp's base has no strided mode", remedy="Use --save-base.")
    for path in (save_logits, save_base, figure):
        if path is not None:
            refuse_existing(path, force, [model, *(text or ()), *([] if base is None else [base])])
    if figure is not None:
        check_figure(figure)
    texts = [read_text(path) for path in text or ()]
    reference = None if base is None else open_base(base)
    if reference is not None:
        _refuse_another_cut(reference.windows, context, stride, chunks if len(texts) < 2 else None)
    with open_subject(model, load_plugins().registries(), as_arch, pre_tokenizer) as subject:
        tell_notes(subject, context=context)
        if reference is not None or save_base is not None or as_json:
            subject = identified(subject, as_json)
        cut = Cut(context, stride, chunks)
        measured = _Measurement(subject, texts, reference, _windows(subject, texts, cut, reference), kind)
        measured.run(save_logits, save_base, base_tokens, threads, quiet=as_json)
        if figure is not None:
            measured.draw(figure)
        measured.show(as_json)


def _refuse_another_cut(of_base: Windows, context: int, stride: int | None, chunks: int | None) -> None:
    """Raise UsageError for a choice of windows that is not the base's."""
    from ...errors import UsageError

    same_context = context in (_CONTEXT, of_base.context)
    same_stride = stride is None or (of_base.mode != "standard" and stride == of_base.stride)
    if not (same_context and same_stride and chunks in (None, len(of_base.tokens))):
        raise UsageError(
            f"the base brings its own {len(of_base.tokens)} windows of {of_base.context} tokens",
            remedy="Leave --context, --stride and --chunks out.",
        )


def _windows(subject: Subject, texts: Sequence[Text], cut: Cut, base: Base | None) -> list[Windows]:
    """Return the windows of each text, those of the base where there is none."""
    from dataclasses import replace

    from ...runtime.measuring.bases import check_base
    from ...runtime.measuring.logits_file import LogitsFile
    from ...runtime.measuring.windows import join
    from ..measure import Cut, cut_text

    if base is None:
        return [cut_text(subject, text, cut) for text in texts]
    own = base.windows
    strided = None if own.mode == "standard" else own.stride
    limit = len(own.tokens) if len(texts) == 1 else cut.limit
    found = [cut_text(subject, text, Cut(own.context, strided, limit)) for text in texts]
    checked = check_base(
        base,
        subject.network.vocabulary,
        subject.tokenizer.digest(),
        subject.identity,
        join(found) if found else None,
    )
    if isinstance(base, LogitsFile):
        checked = replace(checked, bos=subject.bos)
    return [checked]


class _Measurement:
    """A run of the command: what it measures, and what came of it."""

    def __init__(
        self, subject: Subject, texts: Sequence[Text], base: Base | None, parts: Sequence[Windows], cache_type: str
    ) -> None:
        from ...runtime.measuring.windows import join

        self.subject = subject
        self.texts = texts
        self.base = base
        self.parts = parts
        self.windows = join(parts)
        self.cache_type = cache_type
        self.losses: list[NDArray[np.float64]] = []
        self.compared: Any = None
        self.seconds = 0.0

    def run(
        self, save_logits: Path | None, save_base: Path | None, base_tokens: int, threads: int | None, quiet: bool
    ) -> None:
        """Score all windows, writing bases on the way."""
        from ...runtime.measuring.divergence import concatenate
        from ...runtime.measuring.perplexity import score
        from .running import running_bar

        started = time.monotonic()
        found = []
        with ExitStack() as stack:
            sinks, finish = self._sinks(stack, save_logits, save_base, base_tokens)
            total = len(self.windows.tokens)
            advance = stack.enter_context(running_bar("perplexity", total, quiet))
            loss = divergence = 0.0
            scored = score(
                self.subject.network,
                self.windows,
                base=self.base,
                sinks=sinks,
                cache_type=self.cache_type,
                threads=threads,
                move=advance.move,
            )
            for window in scored:
                self.losses.append(window.losses)
                loss += float(window.losses.mean())
                result = f"PPL {_exp(loss / len(self.losses))}"
                if window.compared is not None:
                    found.append(window.compared)
                    divergence += float(window.compared.divergence.mean())
                    result += f", divergence {divergence / len(found):.5f}"
                advance(result)
            for step in finish:
                step()
        self.compared = concatenate(found) if found else None
        self.seconds = time.monotonic() - started

    def _sinks(
        self, stack: ExitStack, save_logits: Path | None, save_base: Path | None, base_tokens: int
    ) -> tuple[list[Sink], list[Any]]:
        """Open the bases to write; return what takes their rows, and what ends them."""
        from ...formats.whole_file import whole_file
        from ...runtime.measuring.compact_base import CompactWriter
        from ...runtime.measuring.logits_file import encode_records, start_logits_file

        sinks: list[Sink] = []
        finish = []
        if save_logits is not None:
            file = stack.enter_context(whole_file(save_logits))
            start_logits_file(file, self.windows, self.subject.network.vocabulary)
            sinks.append(lambda logits, targets: _write(file, encode_records(logits)))
        if save_base is not None:
            compact = CompactWriter(
                stack.enter_context(whole_file(save_base)),
                self.windows,
                self.subject.network.vocabulary,
                self.subject.identity,
                self.subject.tokenizer.digest(),
                [text.to_dict() for text in self.texts],
                base_tokens,
            )
            sinks.append(compact.add)
            finish.append(compact.finish)
        return sinks, finish

    def draw(self, path: Path) -> None:
        """Write the figure."""
        from ..figure import draw_divergence

        draw_divergence(path, self.compared, self.windows, f"{self.subject.model.path.name}: divergence from the base")

    def show(self, as_json: bool) -> None:
        """Print the results."""
        import numpy as np

        from ...runtime.measuring.compact_base import CompactBase
        from ...runtime.measuring.divergence import MIN_POSITIONS, summarise
        from ...runtime.measuring.losses import estimate
        from ..measure import describe_cut
        from . import report

        whole = estimate(np.concatenate(self.losses))
        each, start = [], 0
        for part in self.parts:
            each.append(estimate(np.concatenate(self.losses[start : start + len(part.tokens)])))
            start += len(part.tokens)
        summary = None if self.compared is None else summarise(self.compared)
        evaluated = self.windows.tokens.size
        if as_json:
            found = describe_cut(self.windows, self.subject, self.texts, self.cache_type)
            found["model"] = self.subject.identity.summary()
            found["perplexity"] = whole.to_dict()
            found["perplexity_by_text"] = [it.to_dict() for it in each]
            found["divergence"] = None if summary is None else summary.to_dict()
            found["divergence_is_lower_bound"] = isinstance(self.base, CompactBase)
            found["seconds"] = round(self.seconds, 3)
            found["tokens_per_second"] = round(evaluated / max(self.seconds, 1e-9), 1)
            report.print_json(found)
            return
        screen = report.console()
        if isinstance(self.base, CompactBase):
            kept, vocabulary = self.base.kept, self.base.vocabulary
            report.note(f"the base keeps {kept} of {vocabulary:,} tokens per position: divergences are lower bounds")
        if len(each) > 1:
            for text, it in zip(self.texts, each, strict=True):
                screen.print(f"{text.name}: PPL = {it.value:.4f} ± {it.error:.4f}", soft_wrap=True)
        if summary is not None and summary.positions >= MIN_POSITIONS:
            _show_summary(summary)
        elif summary is not None:
            report.note(f"{summary.positions} positions are too few for statistics of the divergence")
        screen.print(
            f"PPL = {whole.value:.4f} ± {whole.error:.4f} ({whole.tokens:,} tokens scored in {len(self.windows.tokens)} "
            f"windows of {self.windows.context}, {self.windows.mode} mode; {evaluated / max(self.seconds, 1e-9):,.0f} tokens/s)",
            soft_wrap=True,
        )


def _write(file: Any, data: bytes) -> None:
    file.write(data)


def _exp(loss: float) -> str:
    import math

    return f"{math.exp(loss):.4f}"


def _show_summary(summary: Summary) -> None:
    """Print the statistics block."""
    from . import report

    def line(found: Mean, scale: float = 1.0, digits: int = 6) -> str:
        return f"{scale * found.value:.{digits}f} ± {scale * found.error:.{digits}f}"

    rows = [
        ("mean PPL(Q)", f"{summary.perplexity.value:.6f} ± {summary.perplexity.error:.6f}"),
        ("mean PPL(base)", f"{summary.base_perplexity.value:.6f} ± {summary.base_perplexity.error:.6f}"),
        ("Cor(ln PPL(Q), ln PPL(base))", f"{100 * summary.correlation:.2f} %"),
        ("mean ln(PPL(Q)/PPL(base))", line(summary.log_ratio)),
        ("mean PPL(Q)/PPL(base)", line(summary.ratio)),
        ("mean PPL(Q)-PPL(base)", line(summary.difference)),
        ("", ""),
        ("mean KLD", line(summary.divergence)),
        *((_share(share, "KLD"), f"{value:.6f}") for share, value in summary.divergence_percentiles.items()),
        ("", ""),
        ("mean Δp", line(summary.change, 100, 3) + " %"),
        *((_share(share, "Δp"), f"{100 * value:.3f} %") for share, value in summary.change_percentiles.items()),
        ("RMS Δp", line(summary.change_rms, 100, 3) + " %"),
        ("same top p", line(summary.same_top, 100, 3) + " %"),
    ]
    report.print_table("", ("statistic", "value"), rows, right=("value",))


def _share(share: float, what: str) -> str:
    names = {1.0: "maximum", 0.5: "median", 0.0: "minimum"}
    return f"{names[share]} {what}" if share in names else f"{100 * share:g} % {what}"
