"""How the workers of one training run find each other, as Ray Train wants it said. Imports torch."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from raystill.train.network import meet_where_ray_does


class MeetingConfig(TorchConfig):  # type: ignore[misc]
    """Ray's `TorchConfig` for workers who meet on the network by which Ray reaches their nodes."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls on its workers."""
        return _MeetingBackend


class _MeetingBackend(_TorchBackend):  # type: ignore[misc]
    """Ray's own, told first which network to use."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Start the process group of all workers."""
        worker_group.execute(meet_where_ray_does)
        super().on_start(worker_group, backend_config)
