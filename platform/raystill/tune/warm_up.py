"""Processes that have imported what trials need, made while the driver imports Ray Tune.

Ray keeps a process whose task has ended, and gives it to the next task or actor: so the first trials find
torch and transformers there, instead of importing them after Ray Tune is ready. The first of these processes
also looks at what training would refuse, which takes the same imports: the driver needs none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raystill.errors import RaystillError
from raystill.run.paths import RunPaths
from raystill.run.remote import open_place
from raystill.tune.entry import SweepJob

# A process that takes longer is not waited for: trials import for themselves.
_SECONDS = 120.0


def start_warm_up(job: SweepJob, number: int) -> list[Any]:
    """Begin to make `number` processes on the Ray that runs; returns what `finish_warm_up` waits for."""
    import ray

    prepare = ray.remote(num_cpus=job.resources.get("CPU", 0.0), max_retries=0)(prepare_process)
    return [prepare.remote(job if index == 0 else None) for index in range(number)]


def finish_warm_up(started: list[Any]) -> None:
    """Wait until the processes are ready. Raises the RaystillError that says why no trial could train; a
    process that failed otherwise leaves its error to its trial."""
    import ray

    if not started:
        return
    ready, _ = ray.wait(started, num_returns=len(started), timeout=_SECONDS)
    if started[0] not in ready:
        return
    try:
        ray.get(started[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaystillError):
            raise error.cause from None
    except ray.exceptions.RayError:  # its process died
        return


def prepare_process(job: SweepJob | None) -> None:
    """Import what the training of a trial imports, also what it would only import on the way; with a `job`,
    refuse what its trials could only fail on. Raises as the training stage's preflight does."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from raystill.train.stage import DISTILL_STAGE, SFT_STAGE
    from raystill.tune import trial  # noqa: F401

    if job is None:
        return
    from raystill.config.schema import Config

    stage = SFT_STAGE if job.stage == "sft" else DISTILL_STAGE
    if stage.preflight:
        run = RunPaths(root=Path(job.root), store=open_place(job.store))
        stage.preflight(Config.model_validate_json(job.config), run)
