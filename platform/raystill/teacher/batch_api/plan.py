"""How requests are cut into batches: at the provider's limits, and at what the budget still allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from raystill.teacher.api.wire import BodyShape, build_body
from raystill.teacher.batch_api.endpoint import CHAT_PATH
from raystill.teacher.engine import GenerationRequest
from raystill.teacher.row_work import Row


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold, as the provider documents it: requests, and bytes of its file."""

    max_rows: int = 50_000
    max_bytes: int = 200_000_000


@dataclass(frozen=True)
class BatchLine:
    """One row's line in a file of requests, and the most that it can cost."""

    row: Row
    line: bytes
    worst_usd: float


@dataclass(frozen=True)
class LineMaker:
    """Makes lines. `request_of` names a row's request, `worst_usd` the most that its body can cost."""

    shape: BodyShape
    request_of: Callable[[Row], GenerationRequest]
    worst_usd: Callable[[GenerationRequest, bytes], float]

    def make(self, row: Row) -> BatchLine:
        """The line of one row; its custom_id is the request key."""
        request = self.request_of(row)
        body = build_body(self.shape, request)
        head = f'{{"custom_id":"{request.key}","method":"POST","url":"{CHAT_PATH}","body":'
        return BatchLine(row, head.encode() + body + b"}\n", self.worst_usd(request, body))


def cut_batch(
    lines: Iterator[BatchLine], first: BatchLine | None, limits: BatchLimits, budget_usd: float | None
) -> tuple[list[BatchLine], BatchLine | None]:
    """The next batch, from `first` and then `lines`; and the line that no longer fitted, None at the end.

    An empty batch with a line left over means that the budget doesn't allow even that one.
    """
    batch: list[BatchLine] = []
    num_bytes, cost = 0, 0.0
    for line in itertools.chain([first] if first is not None else [], lines):
        num_bytes += len(line.line)
        cost += line.worst_usd
        is_dear = budget_usd is not None and cost > budget_usd * (1.0 + 1e-12)
        if is_dear or len(batch) >= limits.max_rows or (batch and num_bytes > limits.max_bytes):
            return batch, line
        batch.append(line)
    return batch, None


def iter_cut(lines: Iterable[BatchLine], limits: BatchLimits) -> Iterator[list[BatchLine]]:
    """All of `lines` in batches within the limits, whatever they cost."""
    source, left = iter(lines), None
    while True:
        batch, left = cut_batch(source, left, limits, None)
        if batch:
            yield batch
        if left is None:
            return


def attempts_of(batch: Iterable[BatchLine], attempts: Mapping[str, int]) -> dict[str, int]:
    """The attempts that the rows of `batch` have behind them, where there are any."""
    return {line.row["key"]: attempts[line.row["key"]] for line in batch if attempts.get(line.row["key"])}
