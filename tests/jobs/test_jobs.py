"""jobs/*.py: each is a command of its own, from a clone that nobody installed."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
STAGE_JOBS = {
    "prepare_prompts": "prepare",
    "generate_teacher": "generate",
    "score_teacher": "score",
    "grade_outputs": "grade",
    "curate_outputs": "curate",
    "train_sft": "sft",
    "train_distillation": "distill",
    "evaluate_student": "evaluate",
    "export_student": "export",
}
RUNTIME_ENV = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))


def run_job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a job as Ray would: from the repository's root, with the environment of runtime_env.yaml."""
    return subprocess.run(
        [sys.executable, "-P", f"jobs/{name}.py", *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
        env=os.environ | RUNTIME_ENV["env_vars"] | {"NO_COLOR": "1", "COLUMNS": "110"},
    )  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_help_is_the_docstring(name: str) -> None:
    done = run_job(name, "--help")
    assert done.returncode == 0, done.stderr
    docstring = ast.get_docstring(ast.parse((ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8"))) or ""
    assert docstring.splitlines()[0].split()[0] in done.stdout


def documented_words(name: str) -> list[str]:
    """What follows `ray job submit` in a job's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8"))) or ""
    line = docstring.partition("ray job submit")[2].partition("\n\n")[0].replace("\\\n", " ")
    return shlex.split(line)


@pytest.mark.parametrize(("name", "stage"), STAGE_JOBS.items())
def test_a_job_plans_its_stage_as_its_docstring_submits_it(name: str, stage: str, tmp_path: Path) -> None:
    words = documented_words(name)
    given = [word.replace("/shared", str(tmp_path)) for word in words[words.index("--") + 3 :]]
    done = run_job(name, *given, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [item["name"] for item in plan["stages"]] == [stage]
    assert plan["run_dir"].startswith(str(tmp_path / "runs"))


def test_the_whole_pipeline_is_a_job() -> None:
    done = run_job("run_pipeline", "--config", "configs/demo.yaml", "--dry-run", "--json")
    names = [item["name"] for item in json.loads(done.stdout)["stages"]]
    assert names[0] == "prepare" and names[-1] == "export"


def test_the_documented_command_of_the_first_seed_loads_and_plans() -> None:
    done = run_job(
        "train_distillation", "--config", "configs/worker_9b.yaml", "configs/kd_recipe.yaml", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


@pytest.mark.parametrize("name", JOBS)
def test_the_submit_line_is_right(name: str) -> None:
    words = documented_words(name)
    assert words[words.index("--working-dir") + 1] == "."
    assert (ROOT / words[words.index("--runtime-env") + 1]).is_file()
    command = words[words.index("--") + 1 :]
    assert command[:2] == ["python", f"jobs/{name}.py"]
    assert all((ROOT / word).is_file() for word in command if word.endswith(".yaml"))
    assert any("/shared/" in word for word in command), "what it writes would go with the job's copy"


def test_a_job_has_the_exit_codes_of_the_command() -> None:
    done = run_job("train_sft", "--config", "configs/nowhere.yaml")
    assert done.returncode == 2 and "nowhere.yaml" in done.stderr
    assert run_job("train_sft").returncode == 2


def test_the_runtime_environment_holds_no_secret() -> None:
    assert RUNTIME_ENV["env_vars"]["PYTHONPATH"] == "platform"
    assert not [key for key in RUNTIME_ENV["env_vars"] if "KEY" in key or "SECRET" in key or "TOKEN" in key]
    assert all(isinstance(value, str) for value in RUNTIME_ENV["env_vars"].values())
