"""What was planned is kept until it has happened, and shown beside it."""

from __future__ import annotations

from pathlib import Path

from raystill.cluster.forecast import Expected, compare_forecast, load_forecast, save_forecast
from raystill.cluster.plan import compute_plan
from raystill.config.schema import Config
from raystill.run.manifest import Manifest, load_manifest
from raystill.run.paths import RunPaths
from raystill.run.stage import Stage, StageContext, StageResult, execute


def make(tmp_path: Path) -> Config:
    source = tmp_path / "prompts.jsonl"
    source.write_text(
        '{"prompt": "hello there", "reference": "a long answer to it"}\n' * 100, encoding="utf-8"
    )
    return Config.model_validate(
        {
            "run": {"name": "r", "dir": str(tmp_path / "runs")},
            "prompts": {"sources": [{"path": str(source)}], "eval_size": 20},
            "teacher": {"open": {"model": {"name": "t"}, "pipeline": {"max_new_tokens": 90}}},
        }
    )


def prepare(context: StageContext) -> StageResult:
    path = context.output / "rows"
    path.write_bytes(b"x" * 5000)
    metrics = {"prompt_tokens": {"total": 850}}
    return StageResult(counts={"kept": 90, "eval": 10}, metrics=metrics, files=[path])


def test_plan_and_outcome_stand_side_by_side(tmp_path: Path) -> None:
    config = make(tmp_path)
    paths = RunPaths.from_config(config)
    stages = [Stage("prepare", ("run.seed",), lambda config: (), prepare)]
    assert save_forecast(paths, compute_plan(config, stages)) == {"prepare"}
    execute(stages[0], config, paths)
    manifest = load_manifest(paths.stage_dir("prepare"))
    assert manifest is not None
    (outcome,) = compare_forecast(paths, {"prepare": manifest})
    assert outcome.expected.tokens == 1200 and outcome.happened.tokens == 850
    assert outcome.happened.disk_bytes is not None and outcome.happened.disk_bytes >= 5000
    assert outcome.expected.seconds is not None and outcome.happened.seconds == manifest.seconds
    # A plan of what is complete already expects nothing, and changes nothing.
    assert save_forecast(paths, compute_plan(config, stages)) == frozenset()
    assert load_forecast(paths)["prepare"] == outcome.expected


def test_a_stage_that_goes_on_has_no_time_to_compare(tmp_path: Path) -> None:
    config = make(tmp_path)
    paths = RunPaths.from_config(config)
    stages = [Stage("prepare", ("run.seed",), lambda config: (), prepare)]
    save_forecast(paths, compute_plan(config, stages))
    before = load_forecast(paths)["prepare"]
    execute(stages[0], config, paths)
    (paths.stage_dir("prepare") / "manifest.json").unlink()
    assert save_forecast(paths, compute_plan(config, stages)) == frozenset()
    assert load_forecast(paths)["prepare"] == Expected(None, before.tokens, before.disk_bytes)
    paths.forecast.write_text("[1", encoding="utf-8")
    assert load_forecast(paths) == {} and compare_forecast(paths, {"prepare": manifest()}) == []


def manifest() -> Manifest:
    return Manifest(stage="prepare", fingerprint="x", config={}, inputs={})
