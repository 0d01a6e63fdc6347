"""The command line as a user has it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = ["run", "prepare", "generate", "score", "curate", "sft", "distill", "evaluate", "export", "report",
            "plan", "status", "config", "store", "bench"]  # fmt: skip
PLAIN = {"NO_COLOR": "1", "COLUMNS": "110"}
GOOD = """
run: {name: r, dir: RUNS}
device: {type: cpu}
prompts: {sources: [{path: SOURCE}], eval_size: 2}
teacher: {engine: fake, open: {model: {name: TEACHER}, pipeline: {max_new_tokens: 8}}}
student: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4}
train: {sft: {steps: 2}, distillation: {steps: 2}}
"""


@pytest.fixture
def run() -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raystill.cli.main", *arguments],
            capture_output=True, text=True, check=False, timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT / "platform")} | PLAIN | environment,
        )  # fmt: skip

    return run


@pytest.fixture
def good(tmp_path: Path) -> Path:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(10)), encoding="utf-8")
    text = GOOD.replace("RUNS", str(tmp_path / "runs")).replace("SOURCE", str(source))
    path = tmp_path / "good.yaml"
    path.write_text(text.replace("TEACHER", str(tmp_path / "teacher")), encoding="utf-8")
    return path


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_help_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "config explain", "config schema", "store verify"])
def test_every_command_has_help(command: str, run: Run) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout


@pytest.mark.parametrize("command", ["run", "sft", "plan", "config validate", "config show", "store stats"])
def test_no_configuration_is_said_with_an_example(command: str, run: Run) -> None:
    done = run(*command.split())
    assert done.returncode == 2
    assert "no configuration is given" in done.stderr
    assert "--config configs/demo.yaml" in done.stderr
    assert done.stdout == ""


def test_an_unknown_key_has_its_place_and_the_nearest_spelling(run: Run, tmp_path: Path) -> None:
    bad = write(tmp_path, "training:\n  save_evry: 3\n")
    done = run("config", "validate", "--config", bad)
    assert done.returncode == 2
    assert f"{bad}:2" in done.stderr and "save_evry" in done.stderr and "save_every" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "setting",
    [
        "teacher.signals.num_logprobs=-1",
        "teacher.open.pipeline.temperature=-0.1",
        "teacher.open.pipeline.top_p=0",
        "losses.kd_temperature=0",
        "train.distillation.knowledgedistillation.weight=1.5",
        "run.name=a/b",
        "run.name=../x",
        "run.name=a;b",
        "training.save_every=often",
    ],
)
def test_values_out_of_range_are_refused_and_nothing_is_written(
    setting: str, run: Run, good: Path, tmp_path: Path
) -> None:
    done = run("run", "--config", str(good), "--set", setting)
    assert done.returncode == 2, done.stderr
    assert setting.partition("=")[0] in done.stderr
    assert not (tmp_path / "runs").exists()


def test_errors_are_json_when_asked_for(run: Run, tmp_path: Path) -> None:
    done = run("plan", "--json", "--config", write(tmp_path, "trainig: {}\n"))
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert error["type"] == "ConfigError" and error["exit_code"] == 2
    assert "trainig" in error["problems"][0]["what"] and error["problems"][0]["fix"]


def test_a_traceback_only_with_debug(run: Run, tmp_path: Path) -> None:
    bad = write(tmp_path, "a: [\n")
    assert "Traceback" not in run("plan", "--config", bad).stderr
    assert "Traceback" in run("plan", "--debug", "--config", bad).stderr


def test_a_mistake_of_ours_is_one_line_and_exit_code_1(run: Run, good: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import raystill.config.load as load\n"
        "def broken(*args): raise KeyError('surprise')\n"
        "load.load_config = broken\n",
        encoding="utf-8",
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'platform'}"}
    done = run("plan", "--config", str(good), **environment)
    assert done.returncode == 1
    assert "unexpected KeyError" in done.stderr and "--debug" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("plan", "--debug", "--config", str(good), **environment).stderr


def test_later_files_and_set_win(run: Run, good: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("training: {save_every: 7}\nrun: {seed: 3}\n", encoding="utf-8")
    shown = run("config", "show", "--config", str(good), str(other), "--set", "run.seed=9")
    values = yaml.safe_load(shown.stdout)
    assert values["training"]["save_every"] == 7 and values["run"]["seed"] == 9
    assert json.loads(run("config", "show", "--json", "--config", str(good)).stdout)["run"]["name"] == "r"
    explained = run("config", "explain", "training.save_every", "--config", str(good), str(other))
    assert f"{other}:1" in explained.stdout
    every = run("config", "explain", "--json", "--config", str(good))
    assert "student.hidden_size" in {item["path"] for item in json.loads(every.stdout)}


def test_the_schema_is_json(run: Run) -> None:
    assert json.loads(run("config", "schema").stdout)["type"] == "object"


def test_a_plan_and_a_dry_run_touch_nothing(run: Run, good: Path, tmp_path: Path) -> None:
    for command in (["plan"], ["run", "--dry-run"], ["distill", "--dry-run"]):
        done = run(*command, "--json", "--config", str(good))
        assert done.returncode == 0, done.stderr
        planned = json.loads(done.stdout)
        assert planned["stages"][-1]["action"] == "run"
        assert planned["steps"] == {"sft": 2, "distill": 2}
    assert [stage["name"] for stage in planned["stages"]] == ["distill"]
    assert "Plan of" in run("plan", "--config", str(good)).stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["plan", "config validate"])
def test_planning_and_validating_load_nothing_heavy(command: str, good: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "raystill.cli.main", *command.split(), "--config", good],
        capture_output=True, text=True, check=True, cwd=good.parent, timeout=300,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in loaded
    assert not loaded & {"torch", "ray", "vllm", "transformers", "pandas", "datasets", "numpy", "pyarrow"}


def test_a_stage_before_its_input_says_what_to_run_first(run: Run, good: Path) -> None:
    done = run("generate", "--config", str(good))
    assert done.returncode == 3
    assert "prepare" in done.stderr and "raystill run" in done.stderr


@pytest.mark.parametrize("make", ["file", "foreign"])
def test_foreign_files_are_left_alone(make: str, run: Run, good: Path, tmp_path: Path) -> None:
    """I36."""
    root = tmp_path / "runs" / "r"
    if make == "file":
        root.parent.mkdir()
        root.write_text("mine", encoding="utf-8")
    else:
        root.mkdir(parents=True)
        (root / "mine.txt").write_text("mine", encoding="utf-8")
    done = run("run", "--fresh", "--config", str(good))
    assert done.returncode == 4
    assert str(root) in done.stderr and "run.name" in done.stderr
    kept = root if make == "file" else root / "mine.txt"
    assert kept.read_text(encoding="utf-8") == "mine"


def test_unsupported_keys_block(run: Run, good: Path, tmp_path: Path) -> None:
    setting = ["--set", "export.gguf={}"]
    assert "blocked" in run("plan", "--config", str(good), *setting).stdout
    for command in (["run"], ["config", "validate"]):
        done = run(*command, "--config", str(good), *setting)
        assert done.returncode == 2 and "not supported yet" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_unknown_names_are_usage_errors(run: Run, good: Path) -> None:
    assert run("trian").returncode == 2
    assert run("run", "--no-such-option").returncode == 2
    assert run("bench", "speed").returncode == 2
    done = run("run", "--until", "lunch", "--config", str(good))
    assert done.returncode == 2 and "prepare" in done.stderr


def test_no_colour_codes_reach_a_pipe(run: Run, good: Path) -> None:
    done = run("plan", "--config", str(good), NO_COLOR="")
    assert "\x1b[" not in done.stdout + done.stderr
