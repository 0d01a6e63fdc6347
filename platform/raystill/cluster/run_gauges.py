"""A run's progress as metrics of Ray's, which every node of a cluster serves to Prometheus.

Names are those of the run's log and of metrics.jsonl with a prefix: `train/loss` is `raystill_train_loss`,
which Prometheus shows as `ray_raystill_train_loss`. `cluster/grafana_dashboard.json` draws them.
"""

from __future__ import annotations

from typing import Any

TEACHER_STAGES = ("generate", "score", "grade")
TRAINING_STAGES = ("sft", "distill")
# Fields of a progress event, by the metric that they become.
TEACHER_METRICS = {
    "raystill_gen_rows_done": ("done", "Rows that are done or rejected."),
    "raystill_gen_rows_total": ("total", "Rows that this start set out to do."),
    "raystill_gen_rows_failed": ("rejected", "Rows that were rejected."),
    "raystill_gen_tok_s": ("tokens_per_s", "Completion tokens per second since the first engine was up."),
    "raystill_gen_cost_usd": ("cost_usd", "What an endpoint's answers cost."),
    "raystill_gen_retries": ("retries", "Requests that were sent again."),
}
TRAINING_METRICS = {
    "raystill_train_step": ("done", "Optimizer steps that are done."),
    "raystill_train_steps_total": ("total", "Optimizer steps of the whole stage."),
    "raystill_train_loss": ("loss", "Training loss, nats per token."),
    "raystill_train_kd_kl": ("kd_kl", "Divergence from the teacher, nats per token."),
    "raystill_eval_loss": ("eval_loss", "Held-out loss, nats per token."),
    "raystill_train_tok_s_useful": ("tokens_per_s", "Tokens without padding per second."),
    "raystill_train_mfu": ("mfu", "Share of the measured peak of the devices."),
}
SWEEP_METRICS = {
    "raystill_sweep_trials_running": "Trials that train.",
    "raystill_sweep_trials_stopped": "Trials that the scheduler has ended.",
    "raystill_sweep_trials_done": "Trials that are trained to their end.",
    "raystill_sweep_trials_failed": "Trials that have failed.",
}


class RunGauges:
    """The gauges of one run, tagged with its name and the stage. Ray must be running."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def take(self, record: dict[str, Any]) -> None:
        """Set what a `progress` event says; other events say nothing that is counted."""
        if record.get("event") != "progress":
            return
        stage = str(record.get("stage"))
        known = TEACHER_METRICS if stage in TEACHER_STAGES else {}
        known = TRAINING_METRICS if stage in TRAINING_STAGES else known
        for name, (key, description) in known.items():
            value = record.get(key)
            if isinstance(value, int | float):
                self.set(name, description, float(value), stage)

    def set_trials(self, running: int, outcomes: list[str]) -> None:
        """Set how many trials of a sweep are in which state."""
        counts = (running, outcomes.count("stopped"), outcomes.count("complete"), outcomes.count("failed"))
        for (name, description), count in zip(SWEEP_METRICS.items(), counts, strict=True):
            self.set(name, description, float(count), "tune")

    def set(self, name: str, description: str, value: float, stage: str) -> None:
        """Set one gauge; it is made when it is first set."""
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description, tag_keys=("run", "stage"))
        self._gauges[name].set(value, {"run": self._run, "stage": stage})
