"""The quality benchmark: arms that load, verdicts that need every seed, and one tiny arm end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raystill.bench.quality_arms import ARMS, BY_NAME, CLAIMS, Arm, ArmName
from raystill.bench.quality_records import TEACHER, ArmRecord, arm_job, load_record
from raystill.bench.quality_text import _cut
from raystill.bench.quality_verdicts import arm_tables, claim_rows, mean_of_seeds
from raystill.bench.quality_worlds import DEMO, DRAWS, World
from raystill.evaluate.results import Estimate, RowResult
from raystill.run.publish import write_json
from raystill.train.loss_terms import resolve_loss, signal_of

WORLD = World(DEMO, "demo", 0, ("run.dir=/nowhere", "teacher.signals.num_logprobs=128"), 40)
PROMPTS = 200


def record(arm: ArmName, seed: int, right: int, kl: float, error: float) -> ArmRecord:
    """An arm that answers the first `right` prompts, at `kl` nats per token."""
    rate = right / PROMPTS
    row = RowResult(
        key="distill",
        label="arm",
        model="m",
        parameters=1,
        num_samples=PROMPTS,
        exact_match=Estimate(value=rate, low=rate - 0.01, high=rate + 0.01, n=PROMPTS),
        kl_to_teacher=Estimate(value=kl, low=kl - 0.001, high=kl + 0.001, n=PROMPTS),
        token_accuracy=Estimate(value=0.9, low=0.89, high=0.91, n=PROMPTS),
        calibration_error=Estimate(value=error, low=error - 0.001, high=error + 0.001, n=PROMPTS),
    )
    return ArmRecord(
        task="demo", seed=seed, arm=arm, row=row, correct=[index < right for index in range(PROMPTS)],
        kl_sums=[10 * kl] * PROMPTS, tokens=[10] * PROMPTS, steps=40, cpu_seconds=2.0, bytes_per_token=30.0,
    )  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_valid_configuration_of_the_loss_that_its_name_says(arm: Arm) -> None:
    config = WORLD.arm_config(arm).config
    terms = resolve_loss(config)
    section = config.train.distillation
    assert section is not None and section.steps == arm.steps(40)
    if arm.name == "sft":
        assert not terms.uses_teacher
    else:
        assert terms.uses_teacher and signal_of(config) == {"none": "dense"}.get(arm.signal, arm.signal)
    if arm.signal == "topk":
        assert config.losses.num_logprobs == arm.num_logprobs
    if arm.signal == "sampled":
        assert config.teacher.signals.num_draws == DRAWS["demo"]
    assert arm.after is None or BY_NAME[arm.after].share + arm.share == 1.0


def test_claims_name_arms() -> None:
    assert all({claim.better, claim.than} <= BY_NAME.keys() for claim in CLAIMS)


def test_a_claim_holds_where_every_seed_says_so() -> None:
    def verdicts(second_seed: int) -> dict[str, bool]:
        records = {
            ("demo", seed, name): record(name, seed, right, kl, error)
            for seed in (0, 1)
            for name, right, kl, error in (
                ("forward_kl", 150 if seed == 0 else second_seed, 0.1, 0.05),
                ("sft", 100, 0.3, 0.02),
            )
        }
        return {row.metric: row.met for row in claim_rows(records)}  # type: ignore[arg-type]

    assert verdicts(150) == {"exact match": True, "KL to teacher": True, "calibration error": False}
    assert verdicts(99)["exact match"] is False


def test_the_mean_of_seeds_is_narrower_than_a_seed() -> None:
    one = Estimate(value=0.5, low=0.4, high=0.6, n=10)
    mean = mean_of_seeds([one, one, one, one])
    assert (mean.value, mean.n) == (0.5, 40)
    assert mean.low == pytest.approx(0.45) and mean.high == pytest.approx(0.55)


def test_tables_have_one_row_per_arm_that_was_run() -> None:
    records = {("demo", 0, name): record(name, 0, 50, 0.2, 0.1) for name in (TEACHER, "sft", "k8")}
    (table,) = arm_tables(records)  # type: ignore[arg-type]
    assert [row[0] for row in table.rows] == ["teacher", "SFT only", "forward KL, k = 8"]
    assert table.rows[1][1] == "25, 24 to 26 (25)" and table.rows[0][-1] is None


def test_a_record_is_found_again_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    job = arm_job(tmp_path, WORLD, BY_NAME["k8"])
    assert load_record(job) is None
    kept = record("k8", 0, 50, 0.2, 0.1)
    write_json(job.record, kept.model_dump(mode="json"))
    assert load_record(job) == kept


def test_windows_are_whole_lines_of_about_one_size() -> None:
    text = "".join(f"line {number} of some length\n" for number in range(100)) + "x" * 5000 + "\nend\n"
    windows: list[Any] = list(_cut(text))
    assert all(window.endswith("\n") and len(window) <= 360 for window in windows)
    assert text.startswith("".join(windows)) and len(windows) > 5
