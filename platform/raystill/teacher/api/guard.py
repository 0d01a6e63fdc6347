"""When a run stops although single rows could go on failing: empty answers, and an endpoint that is down."""

from __future__ import annotations

from raystill.errors import RemoteError
from raystill.teacher.api.outcomes import Failure

# A verdict needs so many rows; fewer may be bad luck, and cost little.
_ROWS_TO_JUDGE = 20
_EMPTY_SHARE = 0.25
_UNANSWERED_SHARE = 0.5
_NUM_SAMPLES = 3


class OutcomeGuard:
    """Counts what becomes of rows; belongs to one worker. `where` names the endpoint."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._rows = 0
        self._empty: list[str] = []
        self._unanswered: list[str] = []
        self._num_empty = self._num_unanswered = 0

    def on_answer(self) -> None:
        """A row has its answer."""
        self._rows += 1

    def on_given_up(self, prompt_id: str, failure: Failure) -> RemoteError | None:
        """A row was given up; the error that stops the run where too many were."""
        self._rows += 1
        sample = f"{prompt_id}: {failure.message}"
        if failure.code == "empty":
            self._num_empty += 1
            self._empty = [*self._empty, sample][:_NUM_SAMPLES]
        elif failure.action in ("retry", "throttle"):
            self._num_unanswered += 1
            self._unanswered = [*self._unanswered, sample][:_NUM_SAMPLES]
        if self._rows < _ROWS_TO_JUDGE:
            return None
        if self._num_empty > _EMPTY_SHARE * self._rows:
            return self._error(
                f"{self._num_empty} of {self._rows} answers are empty",
                self._empty,
                "raise teacher.closed.pipeline.max_new_tokens if thoughts use it up, look at the prompts, "
                "then run again: empty answers were never stored as rows",
            )
        if self._num_unanswered > _UNANSWERED_SHARE * self._rows:
            return self._error(
                f"{self._num_unanswered} of {self._rows} rows got no answer after all their attempts",
                self._unanswered,
                "look at the endpoint's status page and at teacher.closed.limits; run again later: answers "
                "are kept, and only missing rows are asked",
            )
        return None

    def _error(self, what: str, samples: list[str], fix: str) -> RemoteError:
        shown = "".join(f"\n    {sample}" for sample in samples)
        return RemoteError(f"{what}, so the run stops:{shown}", where=self._where, fix=fix)
