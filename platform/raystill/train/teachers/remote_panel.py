"""Online teachers in a Ray actor beside the training worker: `Panel` over a wire.

Whole distributions cross it as hidden states (N x D numbers), to be multiplied with copies of the heads here,
chunk by chunk; those at the best tokens of both sides as 2 x K logprobs per token, and no head is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raystill.config.schema import Config
from raystill.config.signal_source import teacher_resources
from raystill.errors import EnvironmentFault, RaystillError
from raystill.losses.teachers import TopKTeacher, WholeTeacher
from raystill.train.batches import Batch
from raystill.train.objective import Head
from raystill.train.settings import TrainSettings
from raystill.train.teachers.load import TeacherPlace
from raystill.train.teachers.panel import PanelStates
from raystill.train.teachers.teacher_process import TeacherProcess, move_batch

_WHERE = "train.distillation.teacher.worker"
_CPU = torch.device("cpu")


def start_panel(
    config: Config,
    settings: TrainSettings,
    places: Sequence[TeacherPlace],
    device: torch.device,
) -> RemotePanel:
    """Start the process, on this node where it has room, and load the models in it.

    It ends with this process. Raises what loading them here would; EnvironmentFault without Ray, or if the
    process dies.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        raise EnvironmentFault(
            "a process for the teachers needs Ray, and this one has none",
            where=_WHERE,
            fix="train through `raystill distill`, or remove the key",
        )
    resources = teacher_resources(config, on_gpu=device.type == "cuda")
    num_cpus, num_gpus = int(resources["CPU"]), resources.get("GPU", 0.0)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = (
        ray.remote(TeacherProcess)
        .options(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=here)
        .remote()
    )
    loaded = actor.load.remote(
        config.model_dump_json(),
        list(places),
        "cuda:0" if num_gpus else "cpu",
        num_cpus,
        settings.precision,
        settings.packed,
    )
    return RemotePanel(actor, _answer(loaded), device)


class RemotePanel:
    """`Panel` whose models are in an actor; answers come to `device`."""

    def __init__(self, actor: Any, vocab_size: int, device: torch.device) -> None:
        self._actor = actor
        self._device = device
        self._batch: Batch | None = None
        self._taken: Any = None
        self._heads: list[Head] | None = None
        self.vocab_size = vocab_size

    def announce(self, batch: Batch) -> None:
        """Let the models begin with a batch. Questions about another one come before this."""
        if self._batch is not batch:
            self._batch = batch
            self._taken = self._actor.take.remote(move_batch(batch, _CPU))

    def whole(self, batch: Batch) -> WholeTeacher:
        """Whole distributions: hidden states from there, heads from here."""
        self.announce(batch)
        if self._heads is None:
            self._heads = [_head_to(head, self._device) for head in _answer(self._actor.heads.remote())]
        states: PanelStates = _answer(self._actor.states.remote(self._taken))
        return states.to(self._device).under(self._heads)

    def at_best(self, batch: Batch, student_ids_NK: Tensor, vocab_size: int) -> TopKTeacher:
        """Logprobs at the best tokens of both sides."""
        self.announce(batch)
        found: TopKTeacher = _answer(
            self._actor.at_best.remote(self._taken, student_ids_NK.cpu(), vocab_size)
        )
        return TopKTeacher(
            found.ids_NK.to(self._device),
            found.logprobs_NK.to(self._device),
            found.tail_logprob_N.to(self._device),
        )

    def close(self) -> None:
        """End the process; harmless when called twice."""
        actor, self._actor = self._actor, None
        if actor is not None:
            import ray

            ray.kill(actor)


def _head_to(head: Head, device: torch.device) -> Head:
    return Head(head.weight_VD.to(device), None if head.bias_V is None else head.bias_V.to(device))


def _answer(reference: Any) -> Any:
    """Wait for an answer. Raises our own error that was raised there, EnvironmentFault for any other."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaystillError):
            raise error.cause from error
        text = next(iter(reversed(str(error.cause).strip().splitlines())), "no message")
        raise _fault(f"failed: {type(error.cause).__name__}: {text[:200]}") from error
    except ray.exceptions.RayActorError as error:
        raise _fault("died") from error


def _fault(what: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the teachers' process {what}",
        where=_WHERE,
        fix="run again: it resumes from the newest checkpoint; if memory ran out, lower "
        "per_device_train_batch_size, or give it a machine or GPU with more",
    )
