"""What a plan expected of each stage, kept until the stage has ended, and what then happened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raystill.cluster.plan import Plan
from raystill.run.manifest import Manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import make_directory, write_json
from raystill.store.layout import SCORE_KINDS, StoreLayout


@dataclass(frozen=True)
class Expected:
    """Seconds, tokens and bytes on disk that a plan gave for a stage; None where it had no estimate."""

    seconds: float | None
    tokens: int | None
    disk_bytes: int | None


@dataclass(frozen=True)
class Outcome:
    """One stage's expectation, and what was measured; None where nothing counts it."""

    stage: StageName
    expected: Expected
    happened: Expected


def save_forecast(paths: RunPaths, plan: Plan) -> frozenset[StageName]:
    """Write down what is expected of the stages that begin now; returns those.

    A stage that goes on after an interruption keeps its tokens and bytes; its time would be that of a part.
    """
    known = load_forecast(paths)
    begun = []
    for stage in plan.stages:
        if stage.action == "run":
            known[stage.name] = Expected(stage.seconds, stage.tokens, stage.disk_bytes)
            begun.append(stage.name)
        elif stage.action == "resume" and stage.name in known:
            known[stage.name] = Expected(None, known[stage.name].tokens, known[stage.name].disk_bytes)
    make_directory(paths.forecast.parent)
    write_json(paths.forecast, {name: asdict(expected) for name, expected in known.items()})
    return frozenset(begun)


def load_forecast(paths: RunPaths) -> dict[StageName, Expected]:
    """What was expected; a file that can't be read expects nothing."""
    try:
        loaded = json.loads(paths.forecast.read_text(encoding="utf-8"))
        return {name: Expected(**values) for name, values in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def compare_forecast(paths: RunPaths, manifests: Mapping[StageName, Manifest]) -> list[Outcome]:
    """Every finished stage that something was expected of, in order."""
    expected = load_forecast(paths)
    return [
        Outcome(name, expected[name], _happened(paths, name, manifest))
        for name, manifest in manifests.items()
        if name in expected
    ]


def _happened(paths: RunPaths, name: StageName, manifest: Manifest) -> Expected:
    counts = manifest.counts
    tokens: int | None = counts.get("completion_tokens") or counts.get("tokens_trained")
    if name == "prepare":
        tokens = manifest.metrics.get("prompt_tokens", {}).get("total")
    size: int | None = _tree_bytes(paths.stage_dir(name))
    if name in ("generate", "score"):
        scored = _scored_bytes(paths)
        answers = _tree_bytes(paths.store) - (scored or 0) if isinstance(paths.store, Path) else 0
        more = answers if name == "generate" else scored
        size = None if size is None or scored is None or more is None else size + more
    return Expected(manifest.seconds, tokens, size)


def _scored_bytes(paths: RunPaths) -> int | None:
    """What score has added to the store; None where that isn't in the run directory: such a store has more
    than this run's rows."""
    if not isinstance(paths.store, Path) or paths.store.parent != paths.root:
        return None
    layout = StoreLayout(paths.store)
    return sum(_tree_bytes(layout.parts(kind, 0).parent) for kind in SCORE_KINDS)


def _tree_bytes(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
