"""Plugins load in order, broken ones are named and left out, names are unique."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qconv.errors import DuplicateNameError, PluginError
from qconv.plugins import PluginInfo, PluginManager, PluginWarning, hookimpl, load_plugins
from qconv.quantizers.base import Encoding

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a fake distribution with one entry point on the path: ``install(name, source of the module)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(name: str, source: str) -> None:
        module = name.replace("-", "_") + "_module"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[qconv]\n{name} = {module}\n")

    yield make
    for module in made:
        sys.modules.pop(module, None)


GOOD = """
    from qconv.plugins import hookimpl
    from qconv.quantizers.base import Encoding

    @hookimpl
    def register_encodings(register):
        register(Encoding("NOVEL", None, 4, 3, "test"))
"""


def info(name: str) -> PluginInfo:
    return PluginInfo(name, "test", "1", ())


def test_built_ins_come_first_and_in_order() -> None:
    manager = load_plugins("")
    assert [(it.name, it.distribution) for it in manager.info] == [
        ("encodings", "qconv"),
        ("formats", "qconv"),
        ("architectures", "qconv"),
    ]
    assert manager.info[0].hooks == ("register_encodings",)
    registries = manager.registries()
    assert list(registries.formats)[:2] == ["gguf", "huggingface"]
    assert registries.encodings["Q4_K"].block_bytes == 144
    assert "llama" in registries.architectures


def test_an_installed_plugin_is_found(install: Install) -> None:
    install("qconv-novel", GOOD)
    manager = load_plugins("qconv-novel")
    assert manager.info[-1] == PluginInfo("qconv-novel", "qconv-novel", "1.0", ("register_encodings",))
    registries = manager.registries()
    assert registries.encodings["NOVEL"].bits_per_weight == 6
    assert registries.providers["encoding"]["NOVEL"] == "qconv-novel (qconv-novel)"


def test_the_environment_switches_third_parties_off(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("qconv-novel", GOOD)
    monkeypatch.setenv("QCONV_PLUGINS", "")
    assert "NOVEL" not in load_plugins().registries().encodings
    monkeypatch.setenv("QCONV_PLUGINS", "another, QConv-Novel")
    assert "NOVEL" in load_plugins().registries().encodings
    monkeypatch.delenv("QCONV_PLUGINS")
    assert "NOVEL" in load_plugins().registries().encodings


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import no_such_module", "ModuleNotFoundError"),
        (
            "from qconv.plugins import hookimpl\n@hookimpl\ndef register_encodings(wrong): ...",
            "register_encodings",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_left_out(install: Install, source: str, reason: str) -> None:
    install("qconv-broken", source)
    with pytest.warns(PluginWarning, match=f"qconv-broken.*{reason}"):
        manager = load_plugins("qconv-broken")
    failed = manager.info[-1]
    assert failed.name == "qconv-broken"
    assert failed.error is not None
    assert reason in failed.error
    assert "Q4_K" in manager.registries().encodings


def test_a_hook_that_raises_is_named_and_the_rest_works(install: Install) -> None:
    source = "from qconv.plugins import hookimpl\n@hookimpl\ndef register_encodings(register): raise OSError('late')"
    install("qconv-late", source)
    manager = load_plugins("qconv-late")
    with pytest.warns(PluginWarning, match=r"qconv-late.*OSError: late"):
        registries = manager.registries()
    assert "Q4_K" in registries.encodings


def test_a_name_registered_twice_names_both_plugins() -> None:
    class Second:
        @staticmethod
        @hookimpl
        def register_encodings(register: Callable[[Encoding], None]) -> None:
            register(Encoding("Q4_K", None, 4, 3, "test"))

    manager = PluginManager()
    manager.add(Second, info("second"))
    with pytest.raises(DuplicateNameError, match=r"'Q4_K' is registered by encodings \(qconv\) and again by second"):
        manager.registries()


def test_a_hook_with_an_unknown_argument_is_refused() -> None:
    class Wrong:
        @staticmethod
        @hookimpl
        def register_formats(nonsense: object) -> None: ...

    with pytest.raises(PluginError, match="nonsense"):
        PluginManager().add(Wrong, info("wrong"))
