"""Processes that have imported what trials need, made while the driver imports Ray Tune.

Ray keeps a process whose task has ended, and gives it to the next task or actor: so the first trials find
torch and transformers there, instead of importing them after Ray Tune is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A process that takes longer is not waited for: trials import for themselves.
_SECONDS = 120.0


def start_warm_up(resources: Mapping[str, float], number: int) -> list[Any]:
    """Begin to make `number` processes on the Ray that runs; returns what `finish_warm_up` waits for."""
    import ray

    task = ray.remote(num_cpus=resources.get("CPU", 0.0), max_retries=0)(import_for_trials)
    return [task.remote() for _ in range(number)]


def finish_warm_up(started: list[Any]) -> None:
    """Wait until the processes are ready; one that failed leaves its error to its trial."""
    import ray

    if started:
        ray.wait(started, num_returns=len(started), timeout=_SECONDS, fetch_local=False)


def import_for_trials() -> None:
    """Import what the training of a trial imports, also what it would only import on the way."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from raystill.tune import trial  # noqa: F401
