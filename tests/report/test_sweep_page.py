"""The page of a sweep: safe text, lines for every trial, and importance that finds what mattered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raystill.report.parallel import Path as Course
from raystill.report.parallel import parallel_coordinates, shorten
from raystill.report.sweep_facts import SweepFacts, SweepTrial, load_sweeps
from raystill.report.sweep_page import build_sweep_report, measure_importance
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths


def trial(number: int, score: float | None, problem: str = "", **params: object) -> SweepTrial:
    points = [(1.0, 2.0), (2.0, score)] if score is not None else []
    outcome = "complete" if score is not None else "failed"
    return SweepTrial(number, outcome, score, dict(params), points, 1.5, problem)


def test_importance_finds_what_mattered() -> None:
    trials = [
        trial(n, score=10.0 * n, rate=0.1 * n, word="ab"[n >= 4], noise=[3, 1, 4, 1, 5, 9, 2, 6][n])
        for n in range(8)
    ]
    shares = dict(measure_importance(trials))
    assert shares["rate"] == pytest.approx(1.0)
    assert shares["rate"] > shares["word"] > shares["noise"] >= 0.0
    assert measure_importance(trials[:2]) == []


def test_the_page_holds_every_trial_and_nothing_that_acts(tmp_path: Path) -> None:
    trials = [
        trial(0, 0.5, a=1e-5, b="x"),
        trial(1, 0.2, a=1e-2, b="<y>"),
        trial(2, None, "<script>", a=1.0, b="x"),
    ]
    facts = SweepFacts(
        "s", "eval/ce", "min", trials, 1, [("1", "best", "min")], "raystill run --config best.yaml"
    )
    build_sweep_report(facts, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 (best)" in page and "&lt;script&gt;" in page and "<script" not in page
    assert page.count('class="curve') >= 2 + 2  # parallel coordinates and courses


def test_a_run_finds_the_sweeps_that_have_ended(tmp_path: Path) -> None:
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    facts = SweepFacts("s", "eval/ce", "min", [trial(0, 0.5, a=[1, "x"])], 0, [("1", "best", "min")], "run")
    for name, text in (("good", json.dumps(facts.to_json())), ("torn", "{"), ("early", None)):
        sweep = SweepPaths.of(paths, name)
        sweep.root.mkdir(parents=True)
        sweep.record.write_text("{}", encoding="utf-8")
        if text is not None:
            sweep.page_facts.write_text(text, encoding="utf-8")
    (found,) = load_sweeps(paths)
    assert found.trials[0].params == {"a": [1, "x"]} and found.facts == facts.facts and found.best == 0


def test_axes_take_words_magnitudes_and_single_values() -> None:
    courses = [Course("t", [1e-5, "x", 3], "distill"), Course("u", [1e-1, "y", 3], "sft")]
    drawn = parallel_coordinates(["a.rate", "b.rate", "c"], courses, title="t")
    assert drawn.count("<path") == 2 and "a.rate" in drawn and "1e-5" in drawn
    assert shorten("x.lora.r", ["x.lora.r", "y.lora.r", "z"]) == "x.lora.r"
    assert shorten("x.lora.alpha", ["x.lora.alpha", "x.r"]) == "alpha"
