"""Where a training worker computes, with how many threads, and in which type."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault
from raystill.train.settings import Precision, TrainSettings


def choose_num_threads(config: Config, local_workers: int) -> int:
    """CPU threads of one worker: training.cpus_per_worker, else the machine's cores shared."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.training.cpus_per_worker or max(cores // local_workers, 1)


def choose_precision(settings: TrainSettings, device_type: str) -> Precision:
    """The precision to train in: the stage's own; else bfloat16 where `assistant.model.bfloat16` wants it and
    the device is a GPU that has it. Raises EnvironmentFault where the device can't do the stage's own.
    """
    where = "train.sft" if settings.stage == "sft" else "train.distillation"
    if settings.precision == "float16" and device_type != "cuda":
        raise EnvironmentFault(
            "float16 training needs a CUDA device; this run is on the CPU",
            where=f"{where}.fp16",
            fix="turn fp16 off; bfloat16 works on the CPU too",
        )
    if settings.precision == "bfloat16" and device_type == "cuda" and not torch.cuda.is_bf16_supported():
        raise EnvironmentFault(
            f"this GPU ({torch.cuda.get_device_name()}) has no bfloat16",
            where=f"{where}.{'bfloat16' if settings.stage == 'sft' else 'bf16'}",
            fix="turn it off, or use fp16 there",
        )
    if settings.precision == "float32" and settings.prefers_bfloat16 and device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return settings.precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The autocast context of a forward pass; float32 has none."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def set_up_torch(config: Config, device: torch.device, num_threads: int) -> None:
    """Fix what would otherwise depend on the machine's mood: threads, TF32, the allocator."""
    torch.set_num_threads(num_threads)
    if device.type == "cuda":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", config.cuda.cuda_alloc_conf)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = config.cuda.allow_tf32
        torch.backends.cudnn.allow_tf32 = config.cuda.allow_tf32
