"""Which kind of device a configuration means on a machine or a cluster."""

from __future__ import annotations

from typing import Literal

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault


def choose_device_type(config: Config, num_gpus: float, *, can_grow: bool = False) -> Literal["cuda", "cpu"]:
    """Where training runs, given the cluster's GPUs; `auto` means CUDA where there is one.

    Raises EnvironmentFault if CUDA is asked for and there is none, unless nodes may still come (`can_grow`).
    """
    if config.device.type == "cpu":
        return "cpu"
    if config.device.type == "cuda" and can_grow:
        return "cuda"
    if config.device.type == "cuda" and num_gpus < 1:
        raise EnvironmentFault(
            "device.type is cuda, and there is no CUDA device",
            where="device.type",
            fix="use a machine with an NVIDIA GPU and a CUDA build of PyTorch, or device.type: auto",
        )
    return "cuda" if num_gpus >= 1 else "cpu"
