"""When failing rows stop the run (I47)."""

from __future__ import annotations

from raystill.teacher.api.guard import OutcomeGuard
from raystill.teacher.api.outcomes import Failure

EMPTY = Failure("reject", "empty", "no text and no tool call, finish_reason stop")
DOWN = Failure("retry", "server_error", "HTTP 503")


def test_too_many_empty_answers_stop_the_run_with_three_samples() -> None:
    """I47."""
    guard = OutcomeGuard("m at https://x")
    errors = []
    for row in range(20):
        if row % 2:
            guard.on_answer()
        else:
            errors.append(guard.on_given_up(f"prompt-{row}", EMPTY))
    guard.on_answer()
    error = guard.on_given_up("prompt-20", EMPTY)
    assert errors == [None] * 10
    assert error is not None and error.exit_code == 5
    assert "11 of 22 answers are empty" in str(error)
    assert str(error).count("prompt-") == 3


def test_a_few_empty_answers_are_rejects_only() -> None:
    """I47."""
    guard = OutcomeGuard("here")
    for row in range(200):
        guard.on_answer()
        if row % 10 == 0:
            assert guard.on_given_up("p", EMPTY) is None


def test_an_endpoint_that_answers_nobody_stops_the_run() -> None:
    """F6."""
    guard = OutcomeGuard("here")
    errors = [guard.on_given_up(f"p{row}", DOWN) for row in range(20)]
    assert errors[:19] == [None] * 19
    assert "got no answer" in str(errors[19])
