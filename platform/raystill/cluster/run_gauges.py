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
    "raystill_gen_in_flight": ("in_flight", "Requests that wait for their answer."),
    "raystill_gen_http_429": ("http_429", "Requests that the endpoint throttled."),
    "raystill_gen_http_5xx": ("http_5xx", "Requests on which the endpoint failed."),
}
TRAINING_METRICS = {
    "raystill_train_step": ("done", "Optimizer steps that are done."),
    "raystill_train_steps_total": ("total", "Optimizer steps of the whole stage."),
    "raystill_train_loss": ("train/loss", "Training loss, nats per token."),
    "raystill_train_ce": ("train/ce", "Cross entropy, nats per token."),
    "raystill_train_kd_kl": ("train/kd_kl", "Divergence from the teacher, nats per token."),
    "raystill_eval_loss": ("eval/loss", "Held-out loss, nats per token."),
    "raystill_train_grad_norm": ("train/grad_norm", "Norm of the last step's gradient, before clipping."),
    "raystill_train_lr": ("train/lr", "Learning rate of the last step."),
    "raystill_train_tok_s_useful": ("train/tok_s_useful", "Tokens without padding per second."),
    "raystill_train_tok_s_raw": ("train/tok_s_raw", "Tokens with padding per second."),
    "raystill_train_pad_frac": ("train/pad_frac", "Share of the computed positions that are padding."),
    "raystill_train_mfu": ("train/mfu", "Share of the measured peak of the devices."),
    "raystill_mem_peak_gb": ("mem/peak_gb", "Most memory of the first worker so far, GB."),
    "raystill_ckpt_blocked_ms": ("ckpt/blocked_ms", "Milliseconds that saving kept training waiting."),
}
# Of every model on the held-out prompts; the stage that a value is tagged with is the one that made it.
EVALUATION_METRICS = {
    "raystill_eval_exact_match": ("exact_match", "Share of the held-out prompts answered exactly."),
    "raystill_eval_kl_to_teacher": ("kl_to_teacher", "Divergence from the teacher, nats per token."),
    "raystill_eval_top1_agreement": ("top1_agreement", "How often the teacher's favourite token is its own."),
    "raystill_eval_perplexity": ("perplexity", "Perplexity of the teacher's completions."),
    "raystill_eval_calibration_error": ("calibration_error", "How far probabilities are from frequencies."),
}
COMPARED_EVENT = "models_compared"
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
        """Set what `progress` and `models_compared` events say; others say nothing that is counted."""
        if record.get("event") == COMPARED_EVENT:
            self._take_evaluation(record.get("measured", {}))
        if record.get("event") != "progress":
            return
        stage, values = str(record.get("stage")), {**record, **record.get("measured", {})}
        known = TEACHER_METRICS if stage in TEACHER_STAGES else {}
        known = TRAINING_METRICS if stage in TRAINING_STAGES else known
        for name, (key, description) in known.items():
            value = values.get(key)
            if isinstance(value, int | float):
                self.set(name, description, float(value), stage)

    def _take_evaluation(self, measured: dict[str, float]) -> None:
        """`eval/MODEL/METRIC`, as in the manifest of evaluate."""
        for path, value in measured.items():
            model, _, metric = path.removeprefix("eval/").partition("/")
            for name, (key, description) in EVALUATION_METRICS.items():
                if key == metric:
                    self.set(name, description, value, model)

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
