"""Variables are set for the body alone, and never over what the user has set."""

from __future__ import annotations

import os

import pytest

from raystill.run.environment import default_environment


def test_what_is_set_stays_and_the_rest_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTILL_TEST_SET", "theirs")
    monkeypatch.delenv("RAYSTILL_TEST_UNSET", raising=False)
    with (
        pytest.raises(ZeroDivisionError),
        default_environment({"RAYSTILL_TEST_SET": "ours", "RAYSTILL_TEST_UNSET": "ours"}),
    ):
        assert (os.environ["RAYSTILL_TEST_SET"], os.environ["RAYSTILL_TEST_UNSET"]) == ("theirs", "ours")
        raise ZeroDivisionError
    assert os.environ["RAYSTILL_TEST_SET"] == "theirs" and "RAYSTILL_TEST_UNSET" not in os.environ
