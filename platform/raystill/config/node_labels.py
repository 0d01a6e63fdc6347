"""Which nodes of a cluster a stage's workers may run on."""

from __future__ import annotations

import os

from raystill.config.schema import Config

_TRAINING = ("sft", "distill", "evaluate", "export")


def is_cluster_joined(config: Config) -> bool:
    """Whether the run uses a Ray that it has not started itself."""
    return config.cluster.address is not None or bool(os.environ.get("RAY_ADDRESS"))


def node_labels(config: Config, stage: str) -> dict[str, str]:
    """What nodes must be labelled with for the workers of `stage`; {}: any node, as on a Ray of our own."""
    if not is_cluster_joined(config):
        return {}
    wanted = config.cluster.training_labels if stage in _TRAINING else config.cluster.teacher_labels
    return dict(wanted or {})
