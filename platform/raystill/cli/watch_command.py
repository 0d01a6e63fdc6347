"""`raystill watch RUN`: a run as it goes on, from wherever its files can be read. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raystill.cli.arguments import ConfigFiles, Debug, Overrides
from raystill.cli.status_command import RunDirectory, find_run
from raystill.cli.terminal import LOG
from raystill.run.paths import RunPaths

_POLL_SECONDS = 0.5


def watch(
    run: RunDirectory = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show the progress of a run and its sweeps until no process works on it; Ctrl-C ends the watching, not
    the run."""
    from raystill.cli.progress import TerminalObserver
    from raystill.run.status import read_status
    from raystill.run.sweep_status import list_sweeps

    paths = find_run(run, config, overrides)
    observer = TerminalObserver()
    logs = RunLogs(paths)
    for record in since_last_start(logs.run.new_records()):
        show(observer, record)
    is_worked_on = True
    while is_worked_on:
        time.sleep(_POLL_SECONDS)
        records = logs.new_records()
        is_held = read_status(paths).is_locked or any(sweep.is_locked for sweep in list_sweeps(paths))
        if not records and not is_held:
            is_worked_on = False
            records = logs.new_records()  # written just before the lock went
        for record in records:
            show(observer, record)
    LOG.print("no process works on it")


def show(observer: Any, record: dict[str, Any]) -> None:
    """Show one event under the name of its stage."""
    if record["event"] == "stage_started":
        observer.announce(str(record.get("stage")))
    observer.event(record)
    if record["event"] in ("stage_finished", "stage_failed"):
        LOG.print(f"      {str(record['event']).removeprefix('stage_')}")


def since_last_start(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the stage that was begun last."""
    starts = [place for place, record in enumerate(records) if record["event"] == "stage_started"]
    return records[starts[-1] :] if starts else records


class RunLogs:
    """The log of a run and those of its sweeps, of which only what comes from now on is shown."""

    def __init__(self, paths: RunPaths) -> None:
        self.run = LogTail(paths.run_log)
        self._paths = paths
        self._sweeps: dict[Path, LogTail] = {}
        for tail in self._tails():
            tail.new_records()

    def new_records(self) -> list[dict[str, Any]]:
        """Events since the last call, those of the run first."""
        return [*self.run.new_records(), *(record for tail in self._tails() for record in tail.new_records())]

    def _tails(self) -> list[LogTail]:
        for path in sorted((self._paths.root / "tune").glob("*/sweep.jsonl")):
            self._sweeps.setdefault(path, LogTail(path))
        return list(self._sweeps.values())


class LogTail:
    """Reads the events that are added to a run's log; half a line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_records(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        return list(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a kill in the middle of a line
                continue
            if isinstance(record, dict) and "event" in record:
                yield record
