"""Keys of a configuration that lie in an object of it."""

from __future__ import annotations

from typing import Any

from qconv.formats.huggingface.nested import has_key, look_up_key, set_key


def test_keys_within_objects() -> None:
    config: dict[str, Any] = {"size": 1, "inner": {"size": 2, "none": None}, "text": "inner"}
    assert [look_up_key(config, key) for key in ("size", "inner.size", "inner.none", "inner.other", "other.size")] == [
        1, 2, None, None, None,
    ]  # fmt: skip
    assert look_up_key(config, "text.size") is None
    assert [has_key(config, key) for key in ("inner", "inner.none", "inner.other", "text.size", "other.size")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_source_is_not_changed_by_its_copy() -> None:
    inner = {"size": 2, "kept": 3}
    config: dict[str, Any] = {"inner": inner, "text": "inner"}
    for key in ("inner.size", "new.size", "text.size", "plain"):
        set_key(config, key, 5)
    assert config == {"inner": {"size": 5, "kept": 3}, "new": {"size": 5}, "text": {"size": 5}, "plain": 5}
    assert inner == {"size": 2, "kept": 3}
