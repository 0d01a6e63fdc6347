"""An engine whose answers have arrived already: what a batch's result files hold, row by row."""

from __future__ import annotations

from raystill.errors import ConfigError
from raystill.store.records import TopKSignal
from raystill.teacher.api.client import read_body
from raystill.teacher.api.outcomes import Failure
from raystill.teacher.api.reader import AnswerReader
from raystill.teacher.engine import Generation, GenerationRequest, ScoreRequest
from raystill.teacher.errors import EngineRowError


class FailedLineError(EngineRowError):
    """A row whose line is no answer; what follows is the failure's business."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code, failure.message)
        self.failure = failure


class ArrivedEngine:
    """`TeacherEngine` over one line at a time: `arrive` it, then `generate` its row."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._outcome: tuple[str, bytes | Failure, float] = ("", b"", 0.0)

    @property
    def rows_in_flight(self) -> int:
        """One: there is nothing to wait for."""
        return 1

    def arrive(self, key: str, outcome: bytes | Failure, reserved_usd: float) -> None:
        """The line that the next `generate` reads; `reserved_usd` is what it counts as without usage."""
        self._outcome = (key, outcome, reserved_usd)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Read the line as if it had come over HTTP. Raises FailedLineError."""
        key, outcome, reserved_usd = self._outcome
        if key != request.key:
            raise AssertionError("a line was read for another row")
        sent = outcome if isinstance(outcome, Failure) else read_body(outcome)
        read = self._reader.read(request, sent, reserved_usd)
        if isinstance(read, Failure):
            raise FailedLineError(read)
        return read

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """Raises ConfigError: batches hold completions."""
        raise ConfigError("a batch can't score completions", where="teacher.closed.endpoint.mode")

    def shutdown(self) -> None:
        """There is nothing to end."""
