"""Work that several threads do together: every part once, results and errors for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from qconv.convert.shared_work import LastUsed, SharedWork


def test_every_part_is_done_once_by_many() -> None:
    begun: list[int] = []
    done: list[tuple[int, int]] = []

    def part(number: int) -> None:
        time.sleep(0.01)
        done.append((number, threading.get_ident()))

    def begin() -> list[partial[None]]:
        begun.append(1)
        time.sleep(0.02)
        return [partial(part, number) for number in range(12)]

    work = SharedWork(begin)

    def finish(_: int) -> int:
        work.finish()
        return len(done)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(finish, range(4))) == [12] * 4
    assert begun == [1]
    assert sorted(number for number, _ in done) == list(range(12))
    assert len({thread for _, thread in done}) > 1
    work.finish()
    assert len(done) == 12


@pytest.mark.parametrize("place", ["begin", "part"])
def test_all_hear_of_an_error(place: str) -> None:
    def fail() -> None:
        raise ValueError("broken")

    def begin() -> list[Callable[[], None]]:
        if place == "begin":
            fail()
        return [lambda: time.sleep(0.01), fail, lambda: time.sleep(0.01)]

    work = SharedWork(begin)
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work.finish) for _ in range(3)]:
            with pytest.raises(ValueError, match="broken"):
                future.result()


def test_the_last_few_are_kept() -> None:
    made: list[str] = []
    kept: LastUsed[str] = LastUsed(2)

    def get(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key

        return kept.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert get(key) == key
    assert made == ["a", "b", "c", "b"]
    kept.forget("b")
    get("b")
    assert made[-2:] == ["b", "b"]


def test_nothing_is_made_by_two_at_once() -> None:
    made: list[int] = []
    kept: LastUsed[int] = LastUsed(1)

    def make() -> int:
        time.sleep(0.02)
        made.append(1)
        return 7

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: kept.get("x", make), range(4))) == [7] * 4
    assert made == [1]
