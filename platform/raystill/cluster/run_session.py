"""Ray for the steps of one command, with the watch over its disks and the run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raystill.cluster.node_watch import NodeWatch
from raystill.config.node_labels import is_cluster_joined
from raystill.config.schema import Config
from raystill.run.events import EventLog, EventName
from raystill.run.interrupts import install_sigterm
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.cluster.demand import Demand


class RunSession:
    """Ray from the first step that needs it to the last. A context manager.

    Every event of a stage goes through `event`: to the caller, and once Ray runs, into Ray's metrics.
    """

    def __init__(self, config: Config, paths: RunPaths, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._config, self._paths, self._on_event = config, paths, on_event
        self._stack = ExitStack()
        self._export: Callable[[dict[str, Any]], None] | None = None
        self._watch: NodeWatch | None = None

    def event(self, record: dict[str, Any]) -> None:
        """Pass on what a stage has logged."""
        self._on_event(record)
        if record.get("event") in ("stage_finished", "stage_failed"):
            self._stop_watch()
        if self._export is not None:
            self._export(record)

    def start(self, stage: StageName | None = None, later: Sequence[StageName] = ()) -> None:
        """Start or join Ray, once; raises EnvironmentFault where `stage` asks for what it can never have, or,
        before the first stage begins, one of the `later` ones: nobody should pay a teacher for a student that
        no cluster of this kind could train.
        """
        from raystill.cluster.demand import require_capacity

        is_first = self._export is None
        self._start()
        for name in later if is_first else ():
            require_capacity(self._config, name)
        demand = None if stage is None else require_capacity(self._config, stage)
        if demand is not None and is_cluster_joined(self._config):
            self._watch_nodes(demand)

    def place(self, stage: Stage, context: StageContext) -> StageResult:
        """Run the body of a stage that loads models: here, or where the cluster joined has what it takes.

        Raises as the body does; EnvironmentFault where no node can ever have it.
        """
        from raystill.cluster.demand import require_capacity
        from raystill.cluster.stage_task import fits_here, run_as_task

        demand = require_capacity(self._config, stage.name)
        if demand is None or fits_here(demand):
            return stage.body(context)
        self._watch_nodes(demand)
        context.events.emit("note", message=f"runs on another node of the cluster: {demand.describe()}")
        return run_as_task(stage.body, context, demand)

    def _watch_nodes(self, demand: Demand) -> None:
        """Let the log say when a stage has fewer nodes than it needs."""
        from raystill.cluster.demand import find_unmet, node_capacity

        def tell(event: EventName, **fields: Any) -> None:
            with EventLog(self._paths.run_log, demand.stage, self._on_event) as events:
                events.emit(event, **fields)

        self._stop_watch()
        self._watch = NodeWatch(lambda: find_unmet(demand, node_capacity(demand.labels)), tell)

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._watch = None

    def _start(self) -> None:
        if self._export is not None:
            return
        from raystill.cluster.disk_monitor import watch_disks
        from raystill.cluster.ray_session import ray_session
        from raystill.cluster.run_gauges import RunGauges

        self._stack.enter_context(ray_session(self._config))
        self._stack.enter_context(watch_disks(self._config, self._paths, self._on_event))
        self._export = RunGauges(self._config.run.name).take
        install_sigterm()  # Ray installs its own handler when it starts

    def __enter__(self) -> RunSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_watch()
        self._export = None
        self._stack.__exit__(kind, error, trace)
