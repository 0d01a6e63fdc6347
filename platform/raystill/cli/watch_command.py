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

_POLL_SECONDS = 0.5


def watch(
    run: RunDirectory = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show a run's progress until no process works on it; Ctrl-C ends the watching, not the run."""
    from raystill.cli.progress import TerminalObserver
    from raystill.run.status import read_status

    paths = find_run(run, config, overrides)
    observer = TerminalObserver()
    log = LogTail(paths.run_log)
    for record in since_last_start(log.new_records()):
        show(observer, record)
    is_worked_on = True
    while is_worked_on:
        time.sleep(_POLL_SECONDS)
        records = log.new_records()
        if not records and not read_status(paths).is_locked:
            is_worked_on = False
            records = log.new_records()  # written just before the lock went
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
