"""Which device and number type an engine uses."""

from __future__ import annotations

import os
from typing import Literal

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault

DeviceType = Literal["cuda", "cpu"]
DtypeName = Literal["float32", "bfloat16"]

# bfloat16 saves memory on a CPU, not time: below this size float32 is exact and as fast or faster.
_CPU_BFLOAT16_FROM_BYTES = 4 * 2**30


def resolve_device(config: Config) -> DeviceType:
    """The device of teacher engines: what `device.type` says, or CUDA where this machine or cluster has it.

    Raises EnvironmentFault when CUDA is asked for and there is none. A cluster's GPUs are taken on trust: its
    GPU nodes may all be gone until somebody asks for them, and what can never come is refused by `demand`.
    """
    if config.device.type == "cpu":
        return "cpu"
    if _has_cuda():
        return "cuda"
    if config.device.type == "cuda":
        if config.cluster.address or os.environ.get("RAY_ADDRESS"):
            return "cuda"
        raise EnvironmentFault(
            "device.type is cuda, but neither this machine nor its Ray cluster has a CUDA device",
            where="device.type",
            fix="set device.type: auto (takes the CPU where there is no GPU) or cpu, or run where a GPU is",
        )
    return "cpu"


def resolve_dtype(config: Config, device: DeviceType, weight_bytes: int) -> DtypeName:
    """The number type of weights and activations.

    CUDA honours `teacher.open.model.bfloat16`. On a CPU small models run in float32 whatever it says, because
    there bfloat16 is slower for them and less exact; from 4 GiB of weights on, memory decides.
    """
    wants_bfloat16 = config.teacher.open is not None and config.teacher.open.model.bfloat16
    if not wants_bfloat16:
        return "float32"
    if device == "cuda" or weight_bytes >= _CPU_BFLOAT16_FROM_BYTES:
        return "bfloat16"
    return "float32"


def export_cuda_settings(config: Config) -> None:
    """Put `cuda.*` into this process, before torch touches the device."""
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = config.cuda.cuda_alloc_conf
    import torch

    torch.backends.cuda.matmul.allow_tf32 = config.cuda.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.cuda.allow_tf32


def _has_cuda() -> bool:
    import ray
    import torch

    if torch.cuda.is_available():
        return True
    return bool(ray.is_initialized()) and ray.cluster_resources().get("GPU", 0.0) > 0
