from __future__ import annotations

from pathlib import Path

import gguf.utility
import pytest
from qconv_encodings import ENCODINGS

from qconv.formats.base import Tensor
from qconv.formats.huggingface.identity import general_metadata, model_name, read_model_card, size_label

HASH = "0123456789abcdef0123456789abcdef01234567"


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_the_folder_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "Tiny-Llama")
    assert model_name(folder, {"_name_or_path": "other/name"}, {}) == "Tiny-Llama"
    monkeypatch.chdir(folder)
    assert model_name(Path(), {}, {}) == "Tiny-Llama"


def test_a_hash_never_does(tmp_path: Path) -> None:
    cache = made(tmp_path / "models--meta-llama--Llama-3.2-1B" / "snapshots" / HASH)
    assert model_name(cache, {}, {}) == "Llama-3.2-1B"
    bare = made(tmp_path / HASH)
    assert model_name(bare, {"_name_or_path": "org/Named"}, {}) == "Named"
    assert model_name(bare, {"_name_or_path": f"/cache/{HASH}/"}, {"base_model": "org/Base"}) == "Base"
    assert model_name(bare, {"_name_or_path": ""}, {}) is None


def test_the_card_is_read_line_by_line(tmp_path: Path) -> None:
    card = '---\nlanguage:\n- en\nlicense: "apache-2.0"\nlicense_link: https://x/LICENSE\nbase_model:\n  - org/Base\n---\nlicense: no\n'
    (tmp_path / "README.md").write_text(card)
    assert read_model_card(tmp_path) == (
        {"license": "apache-2.0", "license_link": "https://x/LICENSE", "base_model": "org/Base"},
        (),
    )


@pytest.mark.parametrize(
    "card",
    [
        b"no front matter",
        b"",
        b"---\nlicense: [mit, other]\n---\n",
        b"---\nlicense: !!python/object:os.system x\n---\n",
        b"---\nlicense: &a mit\n---\n",
        b"---\nlicense:\n---\n",
        b"---\nlicense: |\n  mit\n---\n",
    ],
)
def test_cards_that_need_interpretation_say_nothing(tmp_path: Path, card: bytes) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert read_model_card(tmp_path) == ({}, ())


@pytest.mark.parametrize("card", [b"\xff\xfe---", b"---\nlicense: mit\n"])
def test_broken_cards_are_notes(tmp_path: Path, card: bytes) -> None:
    (tmp_path / "README.md").write_bytes(card)
    found, (note,) = read_model_card(tmp_path)
    assert not found
    assert "README.md is ignored" in note


def weight(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, ENCODINGS["F32"], lambda start, stop: NotImplemented)


@pytest.mark.parametrize(
    "count", [1, 42, 999, 99_600, 260_032, 6_815_744, 124_439_808, 7_241_732_096, 1_200_000_000_000]
)
def test_size_labels_are_those_of_gguf(count: int) -> None:
    assert size_label([weight("a", count)], None) == gguf.utility.size_label(count, count, 0, 0)


def test_mixtures_count_one_path() -> None:
    tensors = [weight("token_embd.weight", 32000, 4096), weight("blk.0.ffn_up_exps.weight", 8, 14336, 4096)]
    shared, expert = 32000 * 4096, 14336 * 4096
    assert size_label(tensors, 8) == gguf.utility.size_label(shared + 8 * expert, shared, expert, 8)


def test_no_tensors_no_label() -> None:
    assert size_label([], None) == ""


def test_sampling_defaults_that_are_numbers_are_kept() -> None:
    generation = {"temperature": 0.6, "top_k": 20, "top_p": float("nan"), "min_p": "x"}
    found = general_metadata("llama", None, "7B", {"license": "mit"}, generation)
    assert {key: field.value for key, field in found.items()} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.size_label": "7B",
        "general.license": "mit",
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
    }
