"""FSDP2: every worker holds a part of each weight, its gradient and its moments.

Each transformer block is one unit that is gathered for its forward and its backward pass; embeddings, final
norm and output projection are the root's, and stay gathered from the forward pass to the end of the backward
pass, so that the loss kernel reads the output projection as an ordinary tensor. Gradients are summed, not
averaged: each worker's loss is already divided by the tokens of all workers.

All workers build the whole model before it is cut. Of a checkpoint every worker writes its parts, and reads
those rows of each tensor that it holds now, so that it fits any number of workers and any parallelism.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raystill.checkpoint.parts import GroupReader
from raystill.train.group import WorkerGroup
from raystill.train.settings import TrainSettings
from raystill.train.student import Student

# float32 weight, gradient and two moments of what trains; the weight alone of what doesn't.
_TRAINED_BYTES, _FROZEN_BYTES = 16, 4
_LARGEST_SHARE = 0.6


def choose_parallelism(
    settings: TrainSettings, group_size: int, trained: int, frozen: int, gpu_bytes: int | None
) -> Literal["ddp", "fsdp"]:
    """How the workers hold the model; `trained` and `frozen` count parameters, a CPU has no `gpu_bytes`."""
    if group_size == 1:
        return "ddp"
    if settings.parallelism != "auto":
        return settings.parallelism
    needed = _TRAINED_BYTES * trained + _FROZEN_BYTES * frozen
    return "fsdp" if gpu_bytes is not None and needed > _LARGEST_SHARE * gpu_bytes else "ddp"


def shard_if_needed(student: Student, settings: TrainSettings, group_size: int) -> None:
    """Cut the student among the workers where it should be; before its optimizer is built. Collective."""
    trained = student.num_parameters(trainable_only=True)
    memory = None
    if student.device.type == "cuda":
        memory = torch.cuda.get_device_properties(student.device).total_memory
    frozen = student.num_parameters() - trained
    if choose_parallelism(settings, group_size, trained, frozen, memory) == "fsdp":
        shard(student.network, student.causal_lm, group_size)


def keep_in_step(student: Student, passes: int, group: WorkerGroup) -> None:
    """Make up, by passes without loss, for those that another worker makes beyond the `passes` of this one:
    each gathers weights from all. Collective; called before the passes, or workers would wait forever."""
    if is_sharded(student.network):
        for _ in range(group.most(passes, student.device) - passes):
            student.idle_pass()


def shard(network: nn.Module, causal_lm: Any, num_workers: int) -> None:
    """Cut `network`, whose transformers model is `causal_lm`, into one part per worker, in place.

    Collective. Parameters become DTensors; an optimizer is built after this.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (num_workers,))
    for block in causal_lm.base_model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    for unit in _units(network):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no reduction with a factor

    def run_backbone(self: nn.Module, **inputs: Any) -> tuple[Tensor]:
        return (causal_lm.base_model(**inputs)[0],)

    # The backbone alone is called, never the network, which the root's gathering is tied to.
    network.run_backbone = types.MethodType(run_backbone, network)  # type: ignore[assignment]
    register_fsdp_forward_method(network, "run_backbone")


def is_sharded(network: nn.Module) -> bool:
    """Whether `network` has been cut by `shard`."""
    return hasattr(network, "run_backbone")


def reshard(network: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass left gathered. Nothing where nothing is cut."""
    for unit in _units(network):
        unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut. Collective where it is."""
    parts: Any = tensor
    return (parts.full_tensor() if is_cut(tensor) else tensor).detach()


def own_parts(tensors: Mapping[str, Tensor], *, is_first: bool) -> dict[str, Tensor]:
    """What this worker writes of tensors by name: its part of those that are cut, along their first
    dimension, and the others only where it `is_first`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_cut(tensor):
            parts: Any = tensor
            found[name] = parts.to_local().detach()
        elif is_first:
            found[name] = tensor.detach()
    return found


def is_cut(tensor: Tensor) -> bool:
    """Whether workers hold parts of `tensor`."""
    return hasattr(tensor, "device_mesh")


def own_rows(parameter: Tensor) -> tuple[int, int]:
    """First and last (exclusive) row of a cut parameter that this worker holds."""
    parts: Any = parameter
    share = -(-parameter.shape[0] // parts.device_mesh.size())
    start = min(share * parts.device_mesh.get_local_rank(), parameter.shape[0])
    return start, start + int(parts.to_local().shape[0])


def read_like(stored: GroupReader, name: str, parameter: Tensor) -> Tensor:
    """Of the stored tensor `name` what this worker holds of `parameter`, on its device; scalars whole."""
    if is_cut(parameter) and stored.shape(name):
        return stored.rows(name, *own_rows(parameter)).to(parameter.device)
    return stored.tensor(name).to(parameter.device)


def copy_into(parameter: Tensor, value: Tensor) -> None:
    """Write into a parameter what `read_like` read for it."""
    parts: Any = parameter
    (parts.to_local() if is_cut(parameter) else parameter).copy_(value)


def as_parts_of(parameter: Tensor, value: Tensor) -> Tensor:
    """What `read_like` read, cut as `parameter` is: what the optimizer keeps beside it."""
    if not is_cut(parameter) or value.ndim == 0:
        return value
    from torch.distributed.tensor import DTensor

    parts: Any = parameter
    return DTensor.from_local(
        value,
        parts.device_mesh,
        parts.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def make_whole(network: nn.Module) -> None:
    """Put every worker's parts together again: `network` has ordinary parameters afterwards. Collective.

    For saving and merging; it can't train any more.
    """
    reshard(network)
    wholes: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in wholes:
                wholes[id(parameter)] = nn.Parameter(whole(parameter), parameter.requires_grad)
            module._parameters[name] = wholes[id(parameter)]


def _units(network: nn.Module) -> Iterable[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (module for module in network.modules() if isinstance(module, FSDPModule))
