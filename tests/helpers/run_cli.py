"""Run the command line inside the test's process, as ``qconv`` would run it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from qconv.convert.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Cli:
    """Callable: ``cli("inspect", path)`` returns a Done."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *words: object) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["qconv", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = self._capsys.readouterr()
        code = stop.value.code
        assert "Traceback" not in captured.err
        return Done(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)
