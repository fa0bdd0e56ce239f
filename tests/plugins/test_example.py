"""examples/qconv-npz installs from its own folder, is found, and its own tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plugin: built from a copy, so that the checkout stays clean."""
    work = tmp_path_factory.mktemp("qconv-npz")
    shutil.copytree(EXAMPLES, work / "examples")
    package = work / "examples" / "qconv-npz"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(work / "site"), str(package)], check=True, capture_output=True)
    return work


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed / "site")}
    environment.pop("QCONV_PLUGINS", None)
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_it_is_listed(installed: Path) -> None:
    assert "npz" in run(installed, "qconv", "plugins").stdout
    assert "NumPy archive" in run(installed, "qconv", "formats").stdout
    assert "S6" in run(installed, "qconv", "types").stdout


def test_its_own_tests_pass(installed: Path) -> None:
    package = installed / "examples" / "qconv-npz"
    done = run(installed, "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={package}", str(package / "tests"))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_gguf_refuses_an_encoding_of_its_own(installed: Path, tmp_path: Path) -> None:
    source = EXAMPLES / "prose-llama-7m"
    done = run(installed, "qconv", "convert", str(source), str(tmp_path / "six.gguf"), "--type", "s6")
    assert done.returncode == 1
    assert "S6" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
