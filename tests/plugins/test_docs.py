"""docs/plugins.md has one heading and one example for each hook, and every example works."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from qconv.convert.opening import detect
from qconv.plugins import PluginInfo, PluginManager, hookspecs

HOOKS = [name for name in vars(hookspecs) if name.startswith("register_")]


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The text below each heading of the second level."""
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    heads = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(heads[1::2], heads[2::2], strict=True))


def example(sections: dict[str, str], hook: str) -> PluginManager:
    """Run the one example of a hook and return a manager that has it."""
    heading = next(it for it in sections if it.startswith(f"{hook}("))
    blocks = re.findall(r"^```python\n(.*?)^```$", sections[heading], flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    module = ModuleType("example")
    exec(compile(blocks[0], f"docs/plugins.md: {hook}", "exec"), vars(module))  # noqa: S102 - the docs are ours
    manager = PluginManager()
    manager.add(module, PluginInfo("example", "example", "1", ()))
    assert manager.info[-1].hooks == (hook,)
    return manager


def test_every_hook_has_a_heading_with_its_arguments(sections: dict[str, str]) -> None:
    arguments = {name: ", ".join(inspect.signature(getattr(hookspecs, name)).parameters) for name in HOOKS}
    assert list(sections) == [f"{name}({arguments[name]})" for name in HOOKS]


def test_the_encoding(sections: dict[str, str]) -> None:
    encoding = example(sections, "register_encodings").registries().encodings["TINY8"]
    rows = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    assert np.abs(encoding.decode(encoding.encode(rows)) - rows).max() < 0.02
    assert not encoding.decode(encoding.encode(np.zeros((1, 4), np.float32))).any()


def test_the_format(sections: dict[str, str], tmp_path: Path) -> None:
    registries = example(sections, "register_formats").registries()
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "weights.npy", values)
    found = detect(tmp_path / "weights.npy", registries)
    assert found.name == "npy"
    assert found.open is not None
    with found.open(tmp_path / "weights.npy", registries.open_context()) as model:
        assert model.tensors["blk.0.ffn_up.weight"].rows(1, 3).tolist() == values[1:].tolist()


def test_the_architecture(sections: dict[str, str]) -> None:
    architecture = example(sections, "register_architectures").registries().architectures["novel"]
    assert architecture.classes == ("NovelForCausalLM",)


def test_the_command(sections: dict[str, str]) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    example(sections, "register_commands").register_commands(app)
    assert CliRunner().invoke(app, ["hello", "World"]).output == "Hello, World!\n"
