"""The reader of tokenizer.model: what the sentencepiece package reads, and nothing but our errors on broken bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizer_folders import train_sentencepiece

from qconv.errors import FormatError, QconvError, TruncatedError
from qconv.formats.huggingface.tokenizing.protobuf import ModelType, parse_sentencepiece, read_sentencepiece

_PATH = Path("tokenizer.model")


def _compare(data: bytes) -> None:
    model = parse_sentencepiece(data, _PATH)
    expected = sentencepiece_model_pb2.ModelProto()
    expected.ParseFromString(data)
    assert [(p.text, p.score, int(p.type)) for p in model.pieces] == [
        (p.piece, p.score, p.type) for p in expected.pieces
    ]
    trainer, normalizer = expected.trainer_spec, expected.normalizer_spec
    assert int(model.model_type) == trainer.model_type
    assert model.byte_fallback == trainer.byte_fallback
    assert model.treat_whitespace_as_suffix == trainer.treat_whitespace_as_suffix
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (
        trainer.unk_id,
        trainer.bos_id,
        trainer.eos_id,
        trainer.pad_id,
    )
    assert (model.normalizer, model.charsmap) == (normalizer.name, normalizer.precompiled_charsmap)
    assert model.add_dummy_prefix == normalizer.add_dummy_prefix
    assert model.remove_extra_whitespaces == normalizer.remove_extra_whitespaces


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_settings_and_pieces(kind: str) -> None:
    data = train_sentencepiece(kind)
    _compare(data)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = parse_sentencepiece(data, _PATH).pieces
    assert [piece.text for piece in pieces] == [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def test_other_settings() -> None:
    _compare(
        train_sentencepiece(
            "bpe",
            user_defined_symbols=("<sep>",),
            pad_id=3,
            bos_id=-1,
            add_dummy_prefix=False,
            treat_whitespace_as_suffix=True,
        )
    )


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_normalization_rules(rule: str) -> None:
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(train_sentencepiece("bpe"))
    message.normalizer_spec.name = rule
    message.normalizer_spec.precompiled_charsmap = bytes(range(256))
    _compare(message.SerializeToString())


@pytest.mark.shared
@pytest.mark.parametrize("name", ["fixtures/tokenizers/llama-2", "models/prose-llama-7m", "models/babyllama-tok105/hf"])
def test_real_models(shared: Path, name: str) -> None:
    _compare((shared / name / "tokenizer.model").read_bytes())


def test_defaults_are_those_of_the_message() -> None:
    message = sentencepiece_model_pb2.ModelProto()
    message.pieces.add(piece="a")
    _compare(message.SerializeToString())
    assert parse_sentencepiece(message.SerializeToString(), _PATH).model_type is ModelType.UNIGRAM


def test_every_truncation_is_noticed_or_harmless() -> None:
    """A cut between two fields leaves a smaller but valid message; any other cut is an error that names the offset."""
    data = train_sentencepiece("bpe")
    kinds = set()
    for length in [*range(200), *range(200, len(data), 97)]:
        try:
            parse_sentencepiece(data[:length], _PATH)
        except TruncatedError as error:
            assert error.offset is not None and error.offset <= length
            kinds.add("truncated")
        except FormatError as error:
            assert "no pieces" in error.message
            kinds.add("empty")
        else:
            kinds.add("whole")
    assert kinds == {"truncated", "empty", "whole"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "bytes starts where"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x02\x0a\x05", "bytes starts where"),
        (b"\x0a\x03\x0a\x01\xff", "no UTF-8"),
        (b"\x0a\x05\x15\x00\x00\xc0\x7f", "nan"),
        (b"\x0a\x02\x18\x09", "unknown type 9"),
        (b"\x12\x02\x18\x07", "unknown type 7"),
        (b"\x08\x01", "wire type 0"),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "more than 64 bits"),
        (b"\x80", "within an integer"),
        (b"IQ== 0\nIg== 1\n", "no pieces|wire type|bytes starts where|no UTF-8"),
    ],
)
def test_lies_are_named(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_sentencepiece(data, _PATH)
    assert caught.value.path == _PATH


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x0a\x00")
def test_any_bytes_give_a_model_or_our_error(data: bytes) -> None:
    try:
        model = parse_sentencepiece(data, _PATH)
    except QconvError as error:
        assert error.path == _PATH
    else:
        assert 0 < len(model.pieces) <= len(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_models_give_a_model_or_our_error(draw: st.DataObject) -> None:
    data = bytearray(train_sentencepiece("bpe")[-2000:])
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        parse_sentencepiece(bytes(data), _PATH)
    except QconvError as error:
        assert error.path == _PATH


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_sentencepiece(tmp_path / "tokenizer.model")
