"""Several workers for one trial, inside the placement group that Ray Tune holds for it.

A TorchTrainer in a trial would take a placement group of its own. Where Ray Tune ends the trial, it kills the
trainer's controller, and what is to free that group then asks a dashboard, which a local Ray doesn't have:
the group stays, and later trials wait for its resources forever. Workers that are actors of the trial's own
process, in Tune's group, end with the trial however it ends, and Tune frees what they held.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raystill.errors import RaystillError
from raystill.run.relay import relay
from raystill.train.group import WorkerGroup
from raystill.train.network import meet_where_ray_does
from raystill.tune.entry import SweepJob
from raystill.tune.trial import Tell, train_alone

# What a worker says: what Ray Tune is to know, or the seconds of its steps once it is done.
_Word = tuple[dict[str, Any], str | None] | float


def train_together(job: SweepJob, number: int, params: dict[str, Any], size: int, tell: Tell) -> float:
    """Train a trial with `size` workers; returns the seconds of the first one's steps.

    Raises the RaystillError that a worker raised, RayActorError where one died: Ray Tune then starts the
    trial again, from its newest checkpoint.
    """
    each = job.resources
    worker = ray.remote(num_cpus=each.get("CPU", 0.0), num_gpus=each.get("GPU", 0.0))(_TrialWorker)
    workers = [worker.remote() for _ in range(size)]
    try:
        address = ray.get(workers[0].choose_address.remote())
        streams = [
            one.train.remote(job, number, params, rank, size, address) for rank, one in enumerate(workers)
        ]
        return _follow(streams, tell)
    except RayTaskError as error:
        if isinstance(error.cause, RaystillError):
            raise error.cause from error
        raise
    finally:  # also where Ray Tune ends the trial at a report
        for one in workers:
            ray.kill(one)


def _follow(streams: list[Any], tell: Tell) -> float:
    """Tell what the first worker says until all are done. One that fails is heard at once, whoever waits."""
    seconds = 0.0
    waiting = list(streams)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        try:
            word: _Word = ray.get(next(ready[0]))
        except StopIteration:
            continue
        waiting.append(ready[0])
        if not isinstance(word, float):
            tell(*word)
        elif ready[0] is streams[0]:
            seconds = word
    return seconds


class _TrialWorker:
    """One process of a trial."""

    def choose_address(self) -> str:
        """Where the workers meet: a free port of this one's node."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def train(
        self, job: SweepJob, number: int, params: dict[str, Any], rank: int, size: int, address: str
    ) -> Iterator[_Word]:
        """Train; yields what Ray Tune is to know as it comes, and the seconds of the steps at the end."""

        def work(tell: Callable[[_Word], None]) -> _Word:
            _join_group(job.device, rank, size, address)
            return train_alone(job, number, params, WorkerGroup(rank, size), lambda *word: tell(word))

        yield from relay(work, "trial")


def _join_group(device: str, rank: int, size: int, address: str) -> None:
    import torch

    meet_where_ray_does()
    if device == "cuda":
        torch.cuda.set_device(0)  # Ray shows each worker its own
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=rank, world_size=size)
