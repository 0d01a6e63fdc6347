"""What a finished training run says about itself."""

from __future__ import annotations

from typing import Any

from raystill.train.assembly import TrainRun
from raystill.train.metrics import iter_metrics


def summarise(run: TrainRun) -> dict[str, Any]:
    """`counts` and `metrics` of the stage's manifest, and `notes` for the user; JSON-able."""
    counters, student = run.state.counters, run.state.student
    counts = {
        **run.data.counts,
        "steps": run.state.step,
        "steps_nonfinite": counters.nonfinite_steps,
        "steps_masked": counters.masked_steps,
        "steps_spike": counters.spike_steps,
        "tokens_trained": counters.tokens,
        "teacher_passes": run.source.teacher_passes,
        "parameters": student.num_parameters(),
        "parameters_trained": student.num_parameters(trainable_only=True),
    }
    last: dict[str, Any] = {}
    for record in iter_metrics(run.job.paths.training_metrics(run.job.stage)):
        last |= {name.replace("/", "_"): value for name, value in record.items() if "/" in name}
    return {
        "counts": counts,
        "notes": run.notes,
        "metrics": {
            "label": run.settings.label,
            **run.settings.terms.describe(),
            "device": str(student.device),
            "num_threads": run.job.num_threads,
            "num_workers": run.group.size,
            **{f"final_{name}": value for name, value in last.items()},
        },
    }
