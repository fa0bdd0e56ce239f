"""What ``inspect`` shows of a model, and typed access to metadata."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_files as crafted
import numpy as np
import pytest
from gguf_files import CONTEXT, Craft, Record, array, scalar

from qconv.errors import FormatError, MissingFileError, TruncatedError
from qconv.formats.getters import get_flag, get_integer, get_number, get_numbers, get_string, get_strings
from qconv.formats.gguf import open_gguf
from qconv.formats.gguf.file_types import file_type_name
from qconv.formats.metadata import Field, ValueType, boolean, float32, numbers, string, strings, uint32
from qconv.formats.positional import PositionalFile
from qconv.formats.summary import SpecialToken, TypeShare, plain_value, printable, summarize, summarize_tensors


def test_a_model_at_a_glance(tmp_path: Path) -> None:
    path = Craft(
        [
            ("general.architecture", scalar(crafted.STRING, "llama")),
            ("general.name", scalar(crafted.STRING, b"Bad\x1b[31m \xff")),
            ("general.file_type", scalar(crafted.UINT32, 7)),
            ("llama.context_length", scalar(crafted.UINT32, 4096)),
            ("llama.attention.head_count_kv", array(crafted.INT32, [2, 4])),
            ("tokenizer.ggml.model", scalar(crafted.STRING, "llama")),
            ("tokenizer.ggml.tokens", array(crafted.STRING, ["<s>", "a", b"\xf0"])),
            ("tokenizer.ggml.bos_token_id", scalar(crafted.UINT32, 0)),
            ("tokenizer.ggml.eot_token_id", scalar(crafted.UINT32, 2)),
            ("tokenizer.ggml.padding_token_id", scalar(crafted.UINT32, 9)),
            ("tokenizer.ggml.add_bos_token", scalar(crafted.BOOL, 1)),
            ("tokenizer.chat_template", scalar(crafted.STRING, "{{ x }}")),
            ("tokenizer.chat_template.tools", scalar(crafted.STRING, "{{ y }}")),
            ("qconv.digest.algorithm", scalar(crafted.STRING, "sha256")),
        ],
        [
            Record("token_embd.weight", (32, 3), kind=8, data=bytes(102)),
            Record("output.weight", (32, 3), kind=8, data=bytes(102)),
            Record("output_norm.weight", (32,), data=bytes(128)),
        ],
    ).write(tmp_path / "m.gguf")
    with open_gguf(path, CONTEXT) as model:
        summary = summarize(model)
        lines = summarize_tensors(model)
    assert summary.name == "Bad\\x1b[31m \\xff"
    assert summary.file_type == "Q8_0"
    assert (summary.parameters, summary.tensors, summary.tensor_bytes) == (224, 3, 332)
    assert summary.bits_per_weight == pytest.approx(8 * 332 / 224)
    assert summary.file_bytes == path.stat().st_size
    assert summary.types == (TypeShare("Q8_0", 2, 192, 204), TypeShare("F32", 1, 32, 128))
    assert summary.context_length == 4096
    assert summary.hyper_parameters == {"context_length": 4096, "attention.head_count_kv": [2, 4]}
    assert summary.container == {"version": 3, "byte_order": "little", "alignment": 32, "parts": 1}
    assert summary.digests
    tokenizer = summary.tokenizer
    assert tokenizer is not None
    assert (tokenizer.model, tokenizer.pre, tokenizer.size, tokenizer.merges) == ("llama", None, 3, 0)
    assert tokenizer.special == {
        "bos": SpecialToken(0, "<s>"),
        "eot": SpecialToken(2, "\\xf0"),
        "padding": SpecialToken(9, None),
    }
    assert tokenizer.flags == {"add_bos_token": True}
    assert tokenizer.templates == ("default", "tools")
    assert len(summary.notes) == 1
    assert json.loads(json.dumps(summary.to_dict()))["tokenizer"]["special"]["bos"] == {"id": 0, "text": "<s>"}
    assert [(line.name, line.shape, line.type, line.parameters, line.bytes) for line in lines] == [
        ("token_embd.weight", (3, 32), "Q8_0", 96, 102),
        ("output.weight", (3, 32), "Q8_0", 96, 102),
        ("output_norm.weight", (32,), "F32", 32, 128),
    ]


def test_a_file_without_a_model(tmp_path: Path) -> None:
    with open_gguf(Craft().write(tmp_path / "m.gguf"), CONTEXT) as model:
        summary = summarize(model)
    assert (summary.architecture, summary.name, summary.file_type, summary.tokenizer) == (None, None, None, None)
    assert summary.bits_per_weight is None
    assert summary.types == ()
    assert not summary.digests


def test_plain_values() -> None:
    assert plain_value(uint32(3)) == 3
    assert plain_value(boolean(True)) is True
    assert plain_value(string("a\x00")) == "a\\x00"
    assert plain_value(strings(["a", "\x1b"])) == ["a", "\\x1b"]
    assert plain_value(numbers([1, 2], ValueType.INT32)) == [1, 2]
    assert plain_value(numbers(np.zeros(1025), ValueType.FLOAT32)) == "1025 values"


def test_nothing_printed_steers_a_terminal() -> None:
    assert printable("Ünïcode 世界 ▁ 😀\n\t") == "Ünïcode 世界 ▁ 😀\n\t"
    assert printable("\x1b\x07\x9b\u202e\udc80\ud800\r") == "\\x1b\\x07\\x9b\\u202e\\x80\\ud800\\x0d"


def test_file_types() -> None:
    assert file_type_name(15) == "Q4_K_M"
    assert file_type_name(1024 + 7) == "Q8_0 (guessed)"
    assert file_type_name(999) == "unknown (999)"


METADATA: dict[str, Field] = {
    "string": string("s"),
    "integer": uint32(3),
    "number": float32(0.5),
    "flag": boolean(True),
    "strings": strings(["a"]),
    "numbers": numbers([1], ValueType.INT32),
}


def test_getters_return_what_has_their_type_and_refuse_the_rest() -> None:
    getters = {
        get_string: {"string"},
        get_integer: {"integer"},
        get_number: {"integer", "number"},
        get_flag: {"flag"},
        get_strings: {"strings"},
    }
    for getter, fitting in getters.items():
        assert getter(METADATA, "absent") is None
        for key, field in METADATA.items():
            if key in fitting:
                assert getter(METADATA, key) == field.value
            else:
                with pytest.raises(FormatError, match=f"m.gguf: the metadata key {key} should be"):
                    getter(METADATA, key, Path("m.gguf"))


def test_number_arrays_have_the_element_type_asked_for() -> None:
    found = get_numbers(METADATA, "numbers", (ValueType.UINT32, ValueType.INT32))
    assert found is not None
    assert found.tolist() == [1]
    assert get_numbers(METADATA, "absent", (ValueType.INT32,)) is None
    with pytest.raises(FormatError, match="numbers should be an array of FLOAT32, but is ARRAY of INT32"):
        get_numbers(METADATA, "numbers", (ValueType.FLOAT32,))
    with pytest.raises(FormatError, match="strings should be an array of FLOAT32"):
        get_numbers(METADATA, "strings", (ValueType.FLOAT32,))


def test_reading_by_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    file = PositionalFile(tmp_path / "f")
    assert file.size == 100
    assert file.read(10, 3) == b"\x0a\x0b\x0c"
    assert file.read(100, 0) == b""
    with pytest.raises(TruncatedError, match="at byte 100: 5 bytes were to be read from byte 98") as caught:
        file.read_into(bytearray(5), 98, "a.weight")
    assert (caught.value.tensor, caught.value.offset) == ("a.weight", 100)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)
    with pytest.raises(MissingFileError):
        PositionalFile(tmp_path / "absent")
