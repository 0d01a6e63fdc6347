"""A stage whose body loads models, as a task of a worker node.

The head of a cluster schedules nothing and may be tiny: a driver there can't evaluate or export a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raystill.cluster.demand import Demand
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, RaystillError
from raystill.run.events import EventLog, EventName
from raystill.run.manifest import Manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.relay import relay
from raystill.run.remote import open_place
from raystill.run.stage import StageContext, StageResult

_MAX_STARTS = 8
# What a task says: an event's name with its fields, or the body's result.
_Word = tuple[EventName, dict[str, Any]] | StageResult
_Body = Callable[[StageContext], StageResult]


@dataclass(frozen=True)
class _Order:
    """A `StageContext` without what only its own process can hold."""

    config: str
    root: str
    store: str
    output: str
    inputs: Mapping[StageName, Manifest]

    @classmethod
    def of(cls, context: StageContext) -> _Order:
        store = context.paths.store
        return cls(
            context.config.model_dump_json(),
            str(context.paths.root.absolute()),
            str(store.absolute()),
            str(context.output.absolute()),
            context.inputs,
        )

    def open(self, events: EventLog) -> StageContext:
        config = Config.model_validate_json(self.config)
        paths = replace(RunPaths.from_config(config), root=Path(self.root), store=open_place(self.store))
        return StageContext(config, paths, Path(self.output), self.inputs, events)


class _RelayedEvents(EventLog):
    """Hands a body's events to the driver, which alone writes the run's log."""

    def __init__(self, tell: Callable[[_Word], None]) -> None:
        self._tell = tell

    def emit(self, event: EventName, **fields: Any) -> None:
        """Pass an event on."""
        self._tell((event, fields))


def fits_here(demand: Demand) -> bool:
    """Whether this process's node has what one worker of `demand` takes. Ray must be running."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    found = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here and node["Alive"])
    own: Mapping[str, float] = next(found, {})
    return all(own.get(name, 0.0) >= amount for name, amount in demand.each.items())


def run_as_task(body: _Body, context: StageContext, demand: Demand) -> StageResult:
    """Run `body`, a module's function, where `demand` is met; its events are logged here.

    A node that is lost takes the work with it, and it is begun again, eight times at most. Raises the
    RaystillError that the body raised, EnvironmentFault where a worker died for want of memory or too often.
    """
    import ray

    task: Any = ray.remote(
        num_cpus=demand.each.get("CPU", 0.0),
        num_gpus=demand.each.get("GPU", 0.0),
        max_retries=0,
        label_selector=demand.labels or None,
    )(_work)
    order = _Order.of(context)
    starts = 1
    while True:
        try:
            return _follow(task.remote(body, order, demand.each.get("CPU", 0.0)), context)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaystillError):
                raise error.cause from error
            raise
        except (ray.exceptions.OutOfMemoryError, ray.exceptions.TaskCancelledError) as error:
            raise _died(demand, error) from error
        except ray.exceptions.RayError as error:
            if starts == _MAX_STARTS:
                raise _died(demand, error) from error
            starts += 1
            lost = f"the worker of {demand.stage} was lost ({type(error).__name__}); beginning it again"
            context.events.emit("warning", message=lost)


def _follow(stream: Any, context: StageContext) -> StageResult:
    """Log what the task says until it is done; where this process is interrupted, the task ends as well."""
    import ray

    is_over = False
    try:
        for reference in stream:
            word: _Word = ray.get(reference)
            if isinstance(word, StageResult):
                is_over = True
                there = context.output.absolute()
                return replace(word, files=[context.output / file.relative_to(there) for file in word.files])
            event, fields = word
            context.events.emit(event, **fields)
        raise EnvironmentFault("a worker ended without a result", where=str(context.output), fix="run again")
    finally:
        if not is_over:
            ray.cancel(stream, force=True)


def _work(body: _Body, order: _Order, num_cpus: float) -> Iterator[_Word]:
    """The task. The body runs in a thread, so that its events are passed on as they come."""
    import torch

    torch.set_num_threads(max(int(num_cpus), 1))

    def work(tell: Callable[[_Word], None]) -> _Word:
        return body(order.open(_RelayedEvents(tell)))

    yield from relay(work, "stage")


def _died(demand: Demand, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"the worker of {demand.stage} died: {type(error).__name__}",
        where=f"a node with {' and '.join(f'{amount:g} {name}' for name, amount in demand.each.items())}",
        fix="run again; if memory ran out, use larger nodes",
    )
