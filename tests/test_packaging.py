"""The wheel holds every package of the checkout, and no stray module of its root."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "scripts", "typings", "build", "dist", "docs", "examples", "demo"}


def test_every_package_is_listed() -> None:
    """Setuptools cannot find packages through a package-dir map, so the list is by hand."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"qconv"}
    for folder in ROOT.iterdir():
        if folder.is_dir() and folder.name not in OUTSIDE and folder.name.isidentifier():
            found |= {".".join(("qconv", *p.parent.relative_to(ROOT).parts)) for p in folder.rglob("*.py")}
            found |= {".".join(("qconv", *p.parent.relative_to(ROOT).parts)) for p in folder.rglob("*.json")}
    assert sorted(settings["packages"]) == sorted(found)


def test_the_root_holds_no_stray_module() -> None:
    """Whatever lies in the root as ``*.py`` is shipped as ``qconv.*``."""
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}


def test_typings_mirrors_the_package() -> None:
    """Static tools see ``qconv`` through these links."""
    mirror = ROOT / "typings" / "qconv"
    if not mirror.is_dir():
        pytest.skip("a source distribution carries no links")
    links = {p.name for p in mirror.iterdir()}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").is_file() and p.name not in OUTSIDE}
    assert links == folders | {"__init__.py", "__main__.py", "errors.py", "py.typed"}
