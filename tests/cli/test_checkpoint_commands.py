"""`raystill checkpoints` on a run with twelve checkpoints, sound and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raystill.checkpoint.copies import CheckpointCopies
from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.store import save_checkpoint, step_directory
from raystill.cli.main import main
from raystill.config.schema import Config
from raystill.config.yaml_text import render_config
from raystill.run.remote import open_place
from raystill.testing.object_storage import object_storage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 100 steps that stands at 60; milestones at 10, 25 and 50, two recent ones, the best one."""
    cleanup = {"max_checkpoints": 2, "min_free_space_gb": 0.0, "keep_best": 1}
    config = Config.model_validate(
        {
            "teacher": {"open": {"model": {"name": "teacher"}}},
            "training": {"checkpoint_cleanup": cleanup},
            "train": {"sft": {"eval_strategy": "steps"}},
        }
    )
    root = tmp_path / "run"
    root.mkdir()
    (root / "resolved.yaml").write_text(render_config(config), encoding="utf-8")
    for step in (5, 10, 20, 25, 30, 40, 50, 60):
        save_checkpoint(
            root / "sft" / "checkpoints",
            step,
            tensors={"model": {"w": torch.full((4,), float(step)), "b": torch.zeros(2)}},
            state={"step": step, "total_steps": 100},
            metrics={"eval/loss": 0.1 if step == 20 else 1.0 + step},
        )
    return root


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(["checkpoints", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_ls_says_why_each_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["step"]: row for row in call(capsys, "ls", str(run))["sft"]}
    reasons = {step: row["reasons"] for step, row in rows.items()}
    assert reasons == {
        5: ["goes with the next save"],
        10: ["milestone 10 %"],
        20: ["best 1 by eval/loss"],
        25: ["milestone 25 %"],
        30: ["goes with the next save"],
        40: ["recent"],
        50: ["milestone 50 %"],
        60: ["recent", "resume point"],
    }
    assert all(row["ok"] and row["size_bytes"] > 0 for row in rows.values())
    assert main(["checkpoints", "ls", str(run)]) == 0
    assert "milestone 25 %" in capsys.readouterr().out


def copy_to(run: Path, address: str) -> CheckpointCopies:
    """Have the run's settings say that its checkpoints are copied below `address`."""
    settings = (run / "resolved.yaml").read_text(encoding="utf-8")
    config = Config.model_validate(yaml.safe_load(settings))
    training = config.training.model_copy(update={"checkpoint_copies": address})
    config = config.model_copy(update={"training": training})
    (run / "resolved.yaml").write_text(render_config(config), encoding="utf-8")
    return CheckpointCopies(open_place(f"{address}/{config.run.name}/sft"), run / "sft" / "checkpoints")


def test_ls_says_what_the_object_storage_has(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "copies" not in call(capsys, "ls", str(run))
    with object_storage() as bucket:
        copies = copy_to(run, f"{bucket}/runs")
        none = call(capsys, "ls", str(run))["copies"]["sft"]
        assert (none["whole"], none["missing"]) == ([], [5, 10, 20, 25, 30, 40, 50, 60])
        copies.follow(RetentionRules(total_steps=100, max_recent=9, min_free_gb=0.0))
        found = call(capsys, "ls", str(run))["copies"]["sft"]
        assert found["whole"] == none["missing"] and found["missing"] == [] and found["size_bytes"] > 0
        assert found["place"] == str(copies.place) and found["damaged"] == {}
        (step_directory(copies.place, 25) / "model.safetensors").write_bytes(b"torn")
        (step_directory(copies.place, 30) / "manifest.json").unlink()
        torn = call(capsys, "ls", str(run))["copies"]["sft"]
        assert torn["missing"] == [25, 30] and torn["damaged"].keys() == {"25", "30"}
        assert main(["checkpoints", "ls", str(run)]) == 0
        assert f"copies: 6 below {copies.place}" in (said := capsys.readouterr().out)
        assert "steps 25, 30 are missing" in said and "step 30 can't be used: its upload did not" in said
        copy_to(run, "s3://there-is-no-such-bucket/runs")
        gone = call(capsys, "ls", str(run))
        assert len(gone["sft"]) == 8 and len(gone["copies"]["sft"]["missing"]) == 8
    unreachable = call(capsys, "ls", str(run))["copies"]["sft"]
    assert unreachable["error"] and main(["checkpoints", "ls", str(run)]) == 0
    assert "can't be read" in capsys.readouterr().out


def test_prune_keeps_the_promise_and_pins(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "pin", str(run), "5") == {
        "stage": "sft", "step": 5, "pinned": True, "changed": True
    }  # fmt: skip
    planned = call(capsys, "prune", str(run), "--dry-run")["stages"]["sft"]
    assert planned["delete"] == [30] and step_directory(run / "sft" / "checkpoints", 30).exists()
    assert call(capsys, "prune", str(run))["stages"]["sft"]["delete"] == [30]
    assert call(capsys, "unpin", str(run), "5")["changed"]
    assert call(capsys, "prune", str(run))["stages"]["sft"]["delete"] == [5]
    assert sorted(path.name for path in (run / "sft" / "checkpoints").iterdir()) == [
        "pins.json", *(f"step-{step:08d}" for step in (10, 20, 25, 40, 50, 60))
    ]  # fmt: skip


def test_verify_names_the_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F17."""
    assert call(capsys, "verify", str(run), "--strict")["num_checkpoints"] == 8
    weights = step_directory(run / "sft" / "checkpoints", 60) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    problems = call(capsys, "verify", str(run), code=3)["error"]["problems"]
    assert "content has changed" in problems[0]["what"] and problems[0]["where"].endswith("step-00000060")
    assert call(capsys, "pin", str(run), "60", code=3)
    assert call(capsys, "pin", str(run), "61", code=3)


def test_strict_also_finds_weights_that_are_not_finite(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(
        run / "sft" / "checkpoints", 70, tensors={"model": {"w": torch.tensor([torch.nan])}}, state={}
    )
    call(capsys, "verify", str(run))
    found = call(capsys, "verify", str(run), "--strict", code=3)
    assert "not finite" in found["error"]["problems"][0]["what"]


def test_diff_says_how_far_tensors_and_state_moved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "diff", str(run), "20", "25")
    assert found["num_equal"] == 1 and not found["is_equal"]
    assert [(change["name"], change["max_abs_diff"]) for change in found["changed"]] == [("model/w", 5.0)]
    assert found["state"] == ["step: 20 -> 25"]
    assert call(capsys, "diff", str(run), "20", "20")["is_equal"]
    assert main(["checkpoints", "diff", str(run), "20", "25"]) == 0
    assert "model/w: at most 5" in capsys.readouterr().out


def test_what_is_no_run_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "ls", str(tmp_path), code=3)
    call(capsys, "ls", str(run), "--stage", "generate", code=2)
    call(capsys, "ls", str(run), "--stage", "distill", code=3)
