"""Stage evaluate: teacher, untrained student, after SFT and after distillation on the held-out prompts.

Reads the prompt table, the teacher store and the models of the training stages; writes `results.json` (the
gap table as data) and `completions.parquet` (who wrote what).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.schema import Config
from raystill.config.signal_source import evaluates_signals
from raystill.run.paths import StageName
from raystill.run.publish import write_json
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.evaluate.gap import ModelOutputs
    from raystill.evaluate.inputs import HeldOut
    from raystill.evaluate.results import Results


def required_stages(config: Config) -> tuple[StageName, ...]:
    """The stages whose output the evaluation reads."""
    stages: list[StageName] = ["prepare", "generate"]
    if evaluates_signals(config) and config.teacher.signals.capture != "generation":
        stages.append("score")
    if config.train.sft is not None:
        stages.append("sft")
    if config.train.distillation is not None:
        stages.append("distill")
    return tuple(stages)


def run_evaluation(context: StageContext) -> StageResult:
    """Measure every model and publish the results. Raises DataError where there is nothing to measure."""
    from raystill.evaluate.completions import save_completions
    from raystill.evaluate.inputs import load_held_out

    config, paths = context.config, context.paths
    held_out = load_held_out(config, paths)
    outputs = _measure_all(context, held_out)
    results = _summarise(config, held_out, outputs)
    save_completions(paths.evaluation_completions, held_out.prompts, outputs)
    write_json(paths.evaluation_results, results.model_dump(mode="json"))
    metrics = _headline_metrics(results)
    context.events.emit("models_compared", measured=metrics)
    return StageResult(
        counts={
            "prompts": results.num_prompts,
            "prompts_without_teacher_output": results.num_prompts_without_teacher_output,
            "models": len(results.rows),
        },
        metrics=metrics,
        files=[paths.evaluation_results, paths.evaluation_completions],
    )


def _measure_all(context: StageContext, held_out: HeldOut) -> list[ModelOutputs]:
    from raystill.evaluate.gap import teacher_outputs, validate_outputs
    from raystill.evaluate.measure import measure_contestant
    from raystill.evaluate.models import count_stored_parameters, list_contestants

    config = context.config
    model = config.teacher.open.model if config.teacher.open and _is_asked_here(config) else None
    outputs = [
        teacher_outputs(
            held_out.prompts,
            held_out.rows,
            label="Teacher",
            model=Path(held_out.identity.teacher).name,
            parameters=count_stored_parameters(Path(model.save_path or model.name).expanduser())
            if model
            else None,
        )
    ]
    validate_outputs(outputs[0], min_samples=config.evaluation.min_samples)
    contestants = list_contestants(config, context.paths)
    for position, contestant in enumerate(contestants, 1):
        context.events.emit("model_started", model=contestant.key, position=position, total=len(contestants))
        entry = measure_contestant(
            contestant,
            held_out.prompts,
            held_out.rows,
            tokens=held_out.tokens,
            config=config,
        )
        validate_outputs(entry, min_samples=config.evaluation.min_samples)
        context.events.emit("model_measured", model=entry.key, seconds=round(entry.seconds, 3))
        outputs.append(entry)
    return outputs


def _summarise(config: Config, held_out: HeldOut, outputs: list[ModelOutputs]) -> Results:
    from raystill.evaluate.gap import build_gaps, build_row, choose_primary_metric, count_tasks
    from raystill.evaluate.models import max_new_tokens
    from raystill.evaluate.results import Results

    rows = [build_row(entry, held_out.prompts) for entry in outputs]
    return Results(
        run=config.run.name,
        primary_metric=choose_primary_metric(rows[0]),
        num_prompts=len(held_out.prompts),
        num_prompts_without_teacher_output=held_out.num_without_output,
        num_prompts_by_task=count_tasks(held_out.prompts),
        rows=rows,
        gap_closed=build_gaps(outputs),
        settings={
            "decoding": "greedy",
            "max_new_tokens": max_new_tokens(config),
            "teacher": _teacher_decoding(config),
        },
    )


def _is_asked_here(config: Config) -> bool:
    """Whether `teacher.open`, where there is one, gave the answers; otherwise it scored those of another."""
    return config.teacher.closed is None and config.teacher.base.from_store is None


def _teacher_decoding(config: Config) -> str:
    if _is_asked_here(config):
        return "greedy"
    return "as its endpoint samples" if config.teacher.closed is not None else "as the store has its answers"


def _headline_metrics(results: Results) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for row in results.rows:
        for name in ("exact_match", "kl_to_teacher", "top1_agreement", "perplexity", "calibration_error"):
            estimate = getattr(row, name)
            if estimate is not None:
                metrics[f"eval/{row.key}/{name}"] = estimate.value
                if estimate.low is not None and estimate.high is not None:
                    metrics[f"eval/{row.key}/{name}_ci95"] = (estimate.high - estimate.low) / 2
    for gap in results.gap_closed:
        if gap.estimate is not None:
            metrics[f"eval/{gap.row}/gap_closed_{gap.metric}"] = gap.estimate.value
    return metrics


STAGE = Stage(
    name="evaluate",
    config_keys=(
        "evaluation.max_samples",
        "evaluation.min_samples",
        "evaluation.max_new_tokens",
        "teacher.open.pipeline.max_new_tokens",
        "teacher.signals.num_logprobs",
        "teacher.signals.capture",
        "train.sft.model_name",
        "train.distillation.run_name",
        "assistant.tokenizer",
        "assistant.inference",
    ),
    inputs=required_stages,
    body=run_evaluation,
    loads_models=True,
)
