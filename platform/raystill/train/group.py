"""The workers of one training run, as one worker sees them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_BUCKET_NUMBERS = 1 << 23


@dataclass(frozen=True)
class WorkerGroup:
    """Rank and size; with one worker every reduction is a no-op."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all workers, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def most(self, number: int, device: torch.device) -> int:
        """The largest `number` of any worker; asked on `device`, where the workers meet."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over all workers, in buckets. A parameter without a gradient here counts as zero.

        Each worker's gradient is already divided by the tokens of all workers, so the sum is the gradient of
        the global mean: no averaging over workers, which would weigh short batches like long ones. Those of
        parameters that are cut among the workers are summed already (`sharding`).
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        numbers = 0
        for parameter in parameters:
            if hasattr(parameter, "device_mesh"):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            numbers += parameter.numel()
            if numbers >= _BUCKET_NUMBERS:
                self._sum_bucket(bucket)
                bucket, numbers = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, gradients: list[Tensor]) -> None:
        flat = self.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
