"""The whole path on a real local Ray, small: prepare to report from the command line, then again for nothing.

The bundled demo teacher answers through the transformers engine; the student has one block and trains for a
few steps. What comes out is checked for being whole and accounted for, not for being good: the demo's own
test does that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raystill.config.load import load_config
from raystill.run.manifest import load_manifest, verify_files
from raystill.run.paths import RunPaths
from raystill.store.verify import verify_store

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "platform" / "raystill" / "demo"
NUM_PROMPTS = 48
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "platform")}
STEPS = ["prepare", "generate", "score", "sft", "distill", "evaluate", "export", "report"]


def write_config(folder: Path, **changes: Any) -> Path:
    lines = (DEMO / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    training = {"steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-5}
    values: dict[str, Any] = {
        "run": {"name": "tiny", "dir": str(folder / "runs")},
        "device": {"type": "cpu"},
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "eval_size": 8},
        "teacher": {
            "engine": "transformers",
            "open": {
                "model": {"name": str(DEMO / "teacher"), "bfloat16": False},
                "pipeline": {"max_new_tokens": 24, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            },
            "signals": {"num_logprobs": 8},
            "store": {"num_partitions": 2, "rows_per_part": 8},
        },
        "student": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 512, "tie_word_embeddings": False,
        },
        "training": {"max_seq_len": 512, "checkpoint_cleanup": {"min_free_space_gb": 0.1}},
        "train": {"sft": training, "distillation": training},
        "evaluation": {"max_samples": 8, "min_samples": 1},
        "export": {"verify_prompts": 0},
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def raystill(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raystill.cli.main", *arguments],
        capture_output=True, text=True, check=False, timeout=timeout, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The configuration of a run that went through, and what --json printed."""
    config = write_config(tmp_path_factory.mktemp("tiny"))
    done = raystill("run", "--config", str(config), "--json")
    assert done.returncode == 0, done.stderr
    yield config, json.loads(done.stdout)


def test_every_step_ran_and_left_a_verified_artefact(finished: tuple[Path, dict[str, Any]]) -> None:
    config, result = finished
    assert [step["name"] for step in result["steps"]] == STEPS
    assert not any(step["skipped"] for step in result["steps"])
    paths = RunPaths.from_config(load_config([config]).config)
    for name in STEPS[:-1]:
        manifest = load_manifest(paths.stage_dir(name))  # type: ignore[arg-type]
        assert manifest is not None
        verify_files(paths.stage_dir(name), manifest)  # type: ignore[arg-type]
    assert paths.report.stat().st_size > 1000
    assert paths.model("export").is_dir()
    assert not list(paths.root.rglob("*.pkl")) and not list(paths.root.rglob("*.pt"))


def test_every_prompt_is_a_row_or_a_reject(finished: tuple[Path, dict[str, Any]]) -> None:
    config, _ = finished
    paths = RunPaths.from_config(load_config([config]).config)
    prepared = load_manifest(paths.stage_dir("prepare"))
    report = verify_store(paths.store)
    assert prepared is not None and report.ok
    assert report.num_rows + report.num_rejects == prepared.counts["kept"]
    assert report.num_duplicates == 0


def test_a_second_run_skips_everything_without_ray_or_torch(finished: tuple[Path, dict[str, Any]]) -> None:
    config, _ = finished
    program = (
        "import sys\n"
        "from raystill.cli.main import main\n"
        f"code = main(['run', '--config', {str(config)!r}])\n"
        "assert not {'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("complete already") == len(STEPS)
    assert "report.html" in done.stdout and "Next:" in done.stdout
    assert "held-out prompts" in done.stdout


def test_a_changed_setting_is_refused_with_its_name(finished: tuple[Path, dict[str, Any]]) -> None:
    config, _ = finished
    done = raystill("run", "--config", str(config), "--set", "train.sft.learning_rate=0.5")
    assert done.returncode == 2
    assert "train.sft.learning_rate: 1e-05 -> 0.5" in done.stderr and "--fresh" in done.stderr


def test_a_plan_of_a_finished_run_reuses_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    config, _ = finished
    planned = json.loads(raystill("plan", "--config", str(config), "--json").stdout)
    assert {stage["action"] for stage in planned["stages"]} == {"reuse"}
    assert planned["seconds"] == 0.0 and planned["blockers"] == []


def test_a_preview_is_the_first_command_and_its_rows_are_not_asked_again(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    shown = raystill("generate", "--preview", "3", "--config", config, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert len(found["samples"]) == 3 and found["left"]["requests"] == NUM_PROMPTS - 3
    states = json.loads(raystill("status", "--config", config, "--json").stdout)["stages"]
    assert {stage["name"]: stage["condition"] for stage in states}["prepare"] == "complete"
    done = raystill("generate", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"][0]["counts"]["reused"] == 3


def test_a_terminated_generation_goes_on_where_it_was(tmp_path: Path) -> None:
    """F4: SIGTERM, the exit code and the words."""
    config = write_config(tmp_path)
    command = [sys.executable, "-m", "raystill.cli.main", "generate", "--config", str(config),
               "--set", "teacher.engine=fake",
               "--set", "teacher.open.pipeline.batch_size=8"]  # fmt: skip
    assert raystill("prepare", "--config", str(config), "--set", "teacher.engine=fake").returncode == 0
    slow = ENVIRONMENT | {"RAYSTILL_FAKE_SECONDS_PER_ROW": "3"}
    paths = RunPaths.from_config(load_config([config]).config)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=slow, cwd=ROOT)
    deadline = time.monotonic() + 300
    while not list(paths.store.rglob("*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    report = verify_store(paths.store)
    assert report.ok and report.num_rows == NUM_PROMPTS and report.num_duplicates == 0


def test_answers_from_elsewhere_are_scored_and_trained_on_to_the_report(tmp_path: Path) -> None:
    """A finished batch of another teacher, with failed lines: imported, scored here, distilled, measured."""
    config = write_config(tmp_path)
    requests, answers = [], []
    for number, line in enumerate((tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        name = f"request-{number}"
        requests.append({"custom_id": name, "body": {"model": "other", "messages": row["messages"]}})
        message = {"role": "assistant", "content": row["reference"]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        response = {"status_code": 200, "body": {"id": name, "choices": [choice]}}
        failed = {"custom_id": name, "response": None, "error": {"code": "batch_expired"}}
        answers.append(failed if number < 3 else {"custom_id": name, "response": response, "error": None})
    for path, rows in ((tmp_path / "in.jsonl", requests), (tmp_path / "out.jsonl", answers)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store = tmp_path / "imported"
    imported = raystill(
        "store", "import", "openai-batch", str(tmp_path / "out.jsonl"), "--input", str(tmp_path / "in.jsonl"),
        "--store", str(store), "--teacher", "another model", "--partitions", "2", "--json",
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["num_added"] == NUM_PROMPTS - 3

    changes = [f"teacher.base.from_store={store}", "teacher.store={}", "teacher.signals.capture=auto",
               "train.sft=null", "train.distillation.steps=2", "run.name=imported"]  # fmt: skip
    overrides = [part for change in changes for part in ("--set", change)]
    done = raystill("run", "--config", str(config), *overrides, "--json")
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert list(steps) == [name for name in STEPS if name != "sft"]
    counts = steps["generate"]["counts"]
    assert counts["reused"] == counts["requests"] == steps["score"]["counts"]["scored"] == NUM_PROMPTS - 3
    assert steps["evaluate"]["counts"]["prompts"] == 8
    assert steps["evaluate"]["counts"].get("prompts_without_teacher_output", 0) == 0
    assert "eval/distill/kl_to_teacher" in steps["evaluate"]["metrics"]
    paths = RunPaths.from_config(load_config([config], changes).config)
    assert paths.store == store and not (paths.root / "teacher_store").exists()
    assert paths.model("export").is_dir() and paths.report.stat().st_size > 1000
    report = verify_store(store)
    assert report.ok and report.num_rows == NUM_PROMPTS - 3
