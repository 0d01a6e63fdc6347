"""How a stage runs: skip what is complete, resume what is not, refuse what has changed.

A stage is data (`Stage`) plus a body. Stages meet only on disk: a body reads its inputs' directories through
`RunPaths`, writes below its own directory, and returns what the manifest should say. `execute` writes the
manifest last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, RaystillError
from raystill.run.events import EventLog
from raystill.run.manifest import (
    Manifest,
    check_files,
    fingerprint_of,
    installed_packages,
    load_manifest,
    record_files,
    save_manifest,
)
from raystill.run.paths import MANIFEST_NAME, STARTED_NAME, RunPaths, StageName
from raystill.run.publish import discard_directory, make_directory, sweep_temporaries, write_json

_EXTERNAL_PREFIX = "file:"


@dataclass(frozen=True)
class StageContext:
    """What a stage's body gets: nothing global, nothing hidden."""

    config: Config
    paths: RunPaths
    output: Path
    inputs: Mapping[StageName, Manifest]
    events: EventLog


@dataclass(frozen=True)
class StageResult:
    """What a stage's body returns.

    `content` identifies the output for the stages after it (defaults to the files' checksums); give it where
    the bytes may differ between equal outputs, such as a store whose parts were cut differently.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    content: Any = None


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    `config_keys` are the dotted paths whose values decide the output: changing any other key neither reruns
    nor invalidates the stage. `derived` gives, by name, what several keys decide together and none alone.
    `inputs` names the stages that must be complete before this one.

    `external_inputs` fingerprints what the stage reads from outside the run (name -> hash of the content);
    it is compared like `inputs`, except that a name which is no longer reported is not a change: a finished
    run stays usable where its sources are not. `preflight` raises for what can be known to be wrong before
    anything is written or removed; it runs only when the body would. `foresee` raises for what can be known
    to be wrong before the stages before this one have run: it looks at the configuration and at what that
    names, never at their output.

    The body of a stage that `loads_models` does so in its own process: on a cluster, where the driver's node
    can't do that, in one of a worker node.

    A stage that `grows` does only what is missing when its inputs have changed, so `execute` can be told to
    accept that; `fixed_inputs` are the external ones where it can't. `describe_new_data` says, in lines for
    the user, what changed inputs would change. `discard` removes what the stage keeps outside of its
    directory, where its output is to be replaced.
    """

    name: StageName
    config_keys: tuple[str, ...]
    inputs: Callable[[Config], tuple[StageName, ...]]
    body: Callable[[StageContext], StageResult]
    needs_ray: bool = False
    loads_models: bool = False
    external_inputs: Callable[[Config], dict[str, str]] | None = None
    preflight: Callable[[Config, RunPaths], None] | None = None
    foresee: Callable[[Config, RunPaths], None] | None = None
    grows: bool = False
    fixed_inputs: tuple[str, ...] = ()
    describe_new_data: Callable[[Config, RunPaths], list[str]] | None = None
    discard: Callable[[Config, RunPaths], None] | None = None
    derived: Callable[[Config], dict[str, Any]] | None = None

    def settings(self, config: Config) -> dict[str, Any]:
        """What of `config` decides the output, by dotted path or name; JSON-able."""
        derived = {} if self.derived is None else self.derived(config)
        return config_slice(config, self.config_keys) | derived


@dataclass(frozen=True)
class StageOutcome:
    """What `execute` did: the stage's manifest, and whether it was there already."""

    manifest: Manifest
    skipped: bool


def config_slice(config: Config, keys: tuple[str, ...]) -> dict[str, Any]:
    """The values at `keys` (dotted paths), as JSON-able data keyed by path."""
    whole = config.model_dump(mode="json")
    values = {}
    for key in keys:
        value: Any = whole
        for part in key.split("."):
            value = None if value is None else value[part]
        values[key] = value
    return values


def load_inputs(stage: Stage, config: Config, paths: RunPaths) -> dict[StageName, Manifest]:
    """Manifests of the stage's inputs. Raises DataError naming the first that is not complete or damaged."""
    manifests: dict[StageName, Manifest] = {}
    for name in stage.inputs(config):
        manifest = load_manifest(paths.stage_dir(name))
        if manifest is None:
            raise DataError(
                f"{stage.name} needs the output of {name}, which is not complete",
                where=str(paths.stage_dir(name)),
                fix=f"raystill {name} --config ... first, or raystill run for the whole pipeline",
            )
        check_files(paths.stage_dir(name), manifest)
        manifests[name] = manifest
    return manifests


def changed_keys(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line per leaf that differs between two slices: `key: was -> is`."""
    before, after = dict(_leaves(recorded)), dict(_leaves(current))
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


@dataclass(frozen=True)
class Changes:
    """What differs from when an output was begun: lines about settings, and names of inputs."""

    settings: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    can_be_accepted: bool = False

    def __bool__(self) -> bool:
        return bool(self.settings or self.inputs)


def find_changes(stage: Stage, recorded: Mapping[str, Any] | None, current: Mapping[str, Any]) -> Changes:
    """Compare two records of what an output is made from; nothing has changed where none is recorded.

    An external input that is no longer reported is not a change.
    """
    if recorded is None:
        return Changes()
    settings = changed_keys(recorded["config"], current["config"])
    inputs = [
        name
        for name in sorted(set(recorded["inputs"]) | set(current["inputs"]))
        if recorded["inputs"].get(name) != current["inputs"].get(name)
        and (name in current["inputs"] or not name.startswith(_EXTERNAL_PREFIX))
    ]
    is_fixed = any(name.removeprefix(_EXTERNAL_PREFIX) in stage.fixed_inputs for name in inputs)
    return Changes(tuple(settings), tuple(inputs), stage.grows and not settings and not is_fixed)


def execute(
    stage: Stage,
    config: Config,
    paths: RunPaths,
    *,
    fresh: bool = False,
    accept_new_data: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    before_work: Callable[[], None] | None = None,
) -> StageOutcome:
    """Run `stage`, or skip it if its output is complete and nothing that decides it has changed.

    `accept_new_data` lets a stage that grows go on, from what it has, with inputs that have changed.

    Raises ConfigError naming the changed keys or inputs when a complete or half-done output was made from
    something else (`fresh=True` replaces it), and DataError when an input stage is not complete. The caller
    holds the run lock. `on_event` sees every event that the stage logs. `before_work` is called once nothing
    is left that would refuse the stage, and not for one that is skipped: it starts what the body needs.
    """
    inputs = load_inputs(stage, config, paths)
    output = paths.stage_dir(stage.name)
    external = stage.external_inputs(config) if stage.external_inputs else {}
    origin = {
        "config": stage.settings(config),
        "inputs": {name: manifest.fingerprint for name, manifest in inputs.items()}
        | {_EXTERNAL_PREFIX + name: content for name, content in external.items()},
    }
    complete = None if fresh else load_manifest(output)
    started = output / STARTED_NAME
    recorded = None
    if complete is not None:
        recorded = {"config": complete.config, "inputs": complete.inputs}
    elif not fresh and started.exists():
        recorded = _load_started(started)
    changes = find_changes(stage, recorded, origin)
    if changes and not (accept_new_data and changes.can_be_accepted):
        _refuse(stage, changes, config, paths, output, accept_new_data)
    if complete is not None and not changes:
        check_files(output, complete)
        return StageOutcome(complete, skipped=True)
    if stage.preflight:
        stage.preflight(config, paths)
    if before_work:
        before_work()
    if fresh:
        if stage.discard:
            stage.discard(config, paths)
        discard_directory(output)
    make_directory(output)
    sweep_temporaries(output)
    sweep_temporaries(paths.root)
    if changes or not started.exists():
        write_json(started, origin)
    # After the new record: a kill between the two leaves a complete output that is still the old one.
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    return StageOutcome(_work(stage, config, paths, inputs, origin, on_event), skipped=False)


def _work(
    stage: Stage,
    config: Config,
    paths: RunPaths,
    inputs: Mapping[StageName, Manifest],
    origin: dict[str, Any],
    on_event: Callable[[dict[str, Any]], None] | None,
) -> Manifest:
    output = paths.stage_dir(stage.name)
    with EventLog(paths.run_log, stage.name, on_event) as events:
        events.emit("stage_started", output=str(output))
        started = time.monotonic()
        try:
            result = stage.body(StageContext(config, paths, output, inputs, events))
        except RaystillError:
            _forget_empty_start(output)
            raise
        manifest = _finish(stage, origin, output, result, time.monotonic() - started)
        events.emit("stage_finished", seconds=manifest.seconds, counts=manifest.counts)
    return manifest


def _load_started(path: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {"config": dict(recorded["config"]), "inputs": dict(recorded["inputs"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the record of what this output was begun with is unreadable",
            where=str(path),
            fix="run the stage again with --fresh",
        ) from error


def _forget_empty_start(output: Path) -> None:
    """Drop the record of a start that left nothing behind: corrected settings then need no --fresh."""
    sweep_temporaries(output)
    if [item.name for item in output.iterdir()] == [STARTED_NAME]:
        (output / STARTED_NAME).unlink()
        output.rmdir()


def _finish(
    stage: Stage, origin: dict[str, Any], output: Path, result: StageResult, seconds: float
) -> Manifest:
    files = record_files(output, result.files)
    content = result.content if result.content is not None else {n: r.sha256 for n, r in files.items()}
    manifest = Manifest(
        stage=stage.name,
        fingerprint=fingerprint_of({"stage": stage.name, "content": content}),
        config=origin["config"],
        inputs=origin["inputs"],
        counts=result.counts,
        metrics=result.metrics,
        files=files,
        packages=installed_packages(),
        seconds=round(seconds, 3),
    )
    save_manifest(output, manifest)
    return manifest


def _refuse(
    stage: Stage, changes: Changes, config: Config, paths: RunPaths, output: Path, accept_new_data: bool
) -> None:
    lines = [*changes.settings, *(f"input {name}: made from another version" for name in changes.inputs)]
    remedies = ["restore the settings" if changes.settings else "restore what has changed"]
    if changes.can_be_accepted:
        if stage.describe_new_data is not None:
            lines += stage.describe_new_data(config, paths)
        remedies.append("do only what is new with --accept-new-data")
    elif accept_new_data and not stage.grows:
        lines.append(f"--accept-new-data can't help: {stage.name} has no part that it could keep")
    raise ConfigError(
        f"{stage.name} was made {'with other settings' if changes.settings else 'from other data'}:\n    "
        + "\n    ".join(lines),
        where=str(output),
        fix=f"{', '.join(remedies)}, choose another run.name, or replace the output with "
        f"`raystill {stage.name} --fresh`",
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        found += _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]
    return found
