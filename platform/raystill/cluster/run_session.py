"""Ray for the steps of one command, with the watch over its disks and the run's metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from raystill.config.schema import Config
from raystill.run.interrupts import install_sigterm
from raystill.run.paths import RunPaths, StageName


class RunSession:
    """Ray from the first step that needs it to the last. A context manager.

    Every event of a stage goes through `event`: to the caller, and once Ray runs, into Ray's metrics.
    """

    def __init__(self, config: Config, paths: RunPaths, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._config, self._paths, self._on_event = config, paths, on_event
        self._stack = ExitStack()
        self._export: Callable[[dict[str, Any]], None] | None = None

    def event(self, record: dict[str, Any]) -> None:
        """Pass on what a stage has logged."""
        self._on_event(record)
        if self._export is not None:
            self._export(record)

    def start(self, stage: StageName | None = None) -> None:
        """Start or join Ray, once; raises EnvironmentFault where `stage` asks for what it can never have."""
        from raystill.cluster.demand import require_capacity

        self._start()
        if stage is not None:
            require_capacity(self._config, stage)

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
        self._export = None
        self._stack.__exit__(kind, error, trace)
