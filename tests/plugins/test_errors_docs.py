"""docs/errors.md has one heading and one example for each error class, and every example raises it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qconv import errors

TEXT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
HEADS = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
SECTIONS = dict(zip(HEADS[1::2], HEADS[2::2], strict=True))
CLASSES = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-llama-7m"


def test_every_class_has_a_heading() -> None:
    assert sorted(SECTIONS) == sorted(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_raises_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", SECTIONS[name], flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    kind = getattr(errors, name)
    with pytest.raises(kind) as caught:
        exec(compile(blocks[0], f"docs/errors.md: {name}", "exec"), {"model": str(EXAMPLE)})  # noqa: S102 - the docs are ours
    assert name == "QconvError" or type(caught.value) is kind
    assert len(str(caught.value)) > 20
