"""What work in a thread says is heard as it comes, its result last, and what it raises in the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from raystill.errors import DataError
from raystill.run.relay import relay


def test_words_come_while_the_work_goes_on_and_the_result_is_last() -> None:
    heard = threading.Event()

    def work(tell: Callable[[int], None]) -> int:
        tell(1)
        assert heard.wait(timeout=60), "the first word came only at the end"
        tell(2)
        return 3

    words = relay(work, "work")
    assert next(words) == 1
    heard.set()
    assert list(words) == [2, 3]


def test_what_the_work_raises_comes_after_what_it_said() -> None:
    def work(tell: Callable[[int], None]) -> int:
        tell(1)
        raise DataError("torn")

    words = relay(work, "work")
    assert next(words) == 1
    with pytest.raises(DataError, match="torn"):
        next(words)
