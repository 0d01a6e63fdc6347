"""Teacher, assistant, student: configs/assistant.yaml from end to end on bundled models, a few steps each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raystill.config.load import load_config
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "configs" / "assistant.yaml", ROOT / "configs" / "assistant_demo.yaml"]
SMALLER = {
    "device.type": "cpu",
    "prompts.sources.0.limit": "40",
    "prompts.eval_size": "8",
    "train.sft.steps": "2",
    "train.distillation.steps": "4",
    "train.distillation.logging_steps": "1",
    "evaluation.max_samples": "8",
    "evaluation.min_samples": "1",
    "export.verify_prompts": "0",
    "student.hidden_size": "64",
    "student.intermediate_size": "96",
    "student.num_hidden_layers": "1",
    "training.checkpoint_cleanup.min_free_space_gb": "0.1",
}


def test_one_run_goes_from_the_teacher_to_the_student_through_the_assistant(tmp_path: Path) -> None:
    overrides = [f"{key}={value}" for key, value in {**SMALLER, "run.dir": str(tmp_path)}.items()]
    # What lies below .logs in the configuration belongs to the user's project.
    overrides += ["train.sft.report_to=none", "train.distillation.report_to=none"]
    arguments = ["run", "--json", "--config", *map(str, FILES)]
    arguments += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-m", "raystill.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "platform")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [step["name"] for step in json.loads(done.stdout)["steps"]]
    assert "score" not in steps  # nothing reads the teacher's own logprobs
    assert steps.index("sft") < steps.index("distill")
    paths = RunPaths.from_config(load_config(FILES, overrides).config)
    distill = load_manifest(paths.stage_dir("distill"))
    assert distill is not None
    assert "sft" in distill.inputs
    lines = [json.loads(line) for line in paths.training_metrics("distill").read_text().splitlines()]
    assert all(line["train/kd_kl"] > 0 for line in lines if "train/loss" in line)
    assert "Distillation" in paths.report.read_text(encoding="utf-8")
