"""Export on real files: the weights survive, the directory is complete, and failure leaves nothing half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GenerationConfig

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, EnvironmentFault
from raystill.evaluate.stage import STAGE as EVALUATE
from raystill.export import verify
from raystill.export.stage import STAGE, exported_stage, required_stages
from raystill.run.publish import TEMPORARY_PREFIX
from raystill.run.stage import execute
from raystill.text.chat import load_chat_format

EXPORT_IN_CHILD = """
import sys
from pathlib import Path
from raystill.config.schema import Config
from raystill.export.stage import STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
execute(STAGE, config, RunPaths.from_config(config))
"""


@pytest.fixture(scope="module")
def evaluated(small_run_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    built = small_run_module.build_small_run(tmp_path_factory.mktemp("export"))
    execute(EVALUATE, built.config, built.paths)
    return built


@pytest.fixture
def run(evaluated: Any) -> Any:
    shutil.rmtree(evaluated.paths.stage_dir("export"), ignore_errors=True)
    return evaluated


def with_export(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"export": config.export.model_copy(update=values)})


def logits_of(directory: Path, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
    return logits


def test_round_trip_in_float32_is_exact(run: Any) -> None:
    execute(STAGE, run.config, run.paths)
    exported = run.paths.model("export")
    ours = logits_of(exported, torch.float32)
    assert torch.equal(ours, logits_of(run.paths.model("distill"), torch.float32))
    generation = GenerationConfig.from_pretrained(exported)
    chat = load_chat_format(str(exported))
    assert generation.eos_token_id == [chat.tokenizer.eos_token_id]
    assert generation.pad_token_id == chat.tokenizer.pad_token_id
    assert chat.render_prompt_ids(run.prompts[0].messages) == run.rows[0].prompt_token_ids.tolist()
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names


def test_bfloat16_is_the_rounded_model(run: Any) -> None:
    execute(STAGE, with_export(run.config, dtype="bfloat16"), run.paths)
    exported = AutoModelForCausalLM.from_pretrained(run.paths.model("export"))
    source = AutoModelForCausalLM.from_pretrained(run.paths.model("distill"), dtype=torch.float32)
    assert exported.dtype == torch.bfloat16
    for (name, ours), (_, theirs) in zip(exported.named_parameters(), source.named_parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16)), name


def test_an_unverified_export_says_so(run: Any) -> None:
    outcome = execute(STAGE, run.config, run.paths)
    verdict = json.loads(run.paths.export_verdict.read_text(encoding="utf-8"))
    assert verdict["verification"]["verified"] is False
    assert "verify_prompts is 0" in verdict["verification"]["reason"]
    assert outcome.manifest.metrics["verified"] is False
    assert verdict["source_stage"] == "distill"
    assert set(verdict["source_sha256"]) == {"model.safetensors"}
    card = (run.paths.model("export") / "README.md").read_text(encoding="utf-8")
    assert "Not verified" in card


def test_the_card_is_honest_and_names_no_machine(run: Any) -> None:
    execute(STAGE, run.config, run.paths)
    card = (run.paths.model("export") / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    assert str(run.paths.root.parent.parent) not in card
    assert "24 held-out prompts" in body
    assert "| Student after KD |" in body
    assert "raystill run --config resolved.yaml" in body
    assert "No licence is claimed" in body


def test_the_card_and_the_last_line_name_the_repository(run: Any) -> None:
    student = run.config.student.model_copy(update={"repo": "owner/tiny-student"})
    events: list[dict[str, Any]] = []
    execute(STAGE, run.config.model_copy(update={"student": student}), run.paths, on_event=events.append)
    card = (run.paths.model("export") / "README.md").read_text(encoding="utf-8")
    assert "# tiny-student\n" in card
    assert 'from_pretrained("owner/tiny-student")' in card
    (said,) = [event for event in events if event["event"] == "not_uploaded"]
    assert said["upload_with"] == f"hf upload owner/tiny-student {run.paths.model('export')}"


def test_without_vllm_the_reason_is_recorded(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """I42."""
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    execute(STAGE, with_export(run.config, verify_prompts=4), run.paths)
    verdict = json.loads(run.paths.export_verdict.read_text(encoding="utf-8"))
    assert verdict["verification"]["verified"] is False
    assert "vLLM is not installed" in verdict["verification"]["reason"]


def assert_nothing_left(run: Any) -> None:
    assert not run.paths.model("export").exists()
    assert not run.paths.export_verdict.exists()
    assert list(run.paths.stage_dir("export").glob(f"{TEMPORARY_PREFIX}*")) == []


def test_a_different_completion_fails_and_names_the_prompt(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """F36."""
    source = run.paths.model("distill")
    before = (source / "model.safetensors").read_bytes()

    def answer(exported: Path, task: Any) -> dict[str, Any]:
        return {"version": "0", "completions": [[9, 9, 9] for _ in task.prompts]}

    monkeypatch.setattr(verify, "run_vllm", answer)
    with pytest.raises(DataError, match=r"complete prompt p000 differently: at completion token 0"):
        execute(STAGE, with_export(run.config, verify_prompts=4), run.paths)
    assert_nothing_left(run)
    assert (source / "model.safetensors").read_bytes() == before


def test_an_engine_that_dies_leaves_nothing_and_a_retry_works(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F36."""
    monkeypatch.setattr(verify.sys, "executable", "/bin/false")
    config = with_export(run.config, verify_prompts=4)
    with pytest.raises(EnvironmentFault, match="exit code 1"):
        execute(STAGE, config, run.paths)
    assert_nothing_left(run)
    monkeypatch.undo()
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    execute(STAGE, config, run.paths)
    assert run.paths.model("export").exists()


def test_a_kill_in_the_middle_leaves_no_half_model_and_a_retry_is_whole(run: Any, tmp_path: Path) -> None:
    """F36: SIGKILL when everything is written and nothing has its name yet."""
    source = run.paths.model("distill")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    file = tmp_path / "config.json"
    file.write_text(run.config.model_dump_json(), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-c", EXPORT_IN_CHILD, str(file)],
        env={**os.environ, "RAYSTILL_FAILPOINT": "publish_directory:before_rename:1"},
        capture_output=True, check=False, timeout=900,
    )  # fmt: skip
    assert child.returncode == -9, child.stderr.decode()[-3000:]
    assert not run.paths.model("export").exists() and not run.paths.export_verdict.exists()
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    execute(STAGE, run.config, run.paths)
    assert torch.equal(logits_of(run.paths.model("export"), torch.float32), logits_of(source, torch.float32))
    assert list(run.paths.stage_dir("export").glob(f"{TEMPORARY_PREFIX}*")) == []
    assert execute(STAGE, run.config, run.paths).skipped


def test_weights_that_overflow_the_type_are_refused(run: Any, small_run_module: ModuleType) -> None:
    """I42."""
    directory = run.paths.model("sft")
    kept = directory.with_name("kept")
    shutil.copytree(directory, kept)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e30
    model.save_pretrained(directory)
    train = run.config.train.model_copy(update={"distillation": None})
    config = with_export(run.config, dtype="float16").model_copy(update={"train": train})
    try:
        with pytest.raises(DataError, match="not finite in float16"):
            execute(STAGE, config, run.paths)
        assert_nothing_left(run)
    finally:
        shutil.rmtree(directory)
        kept.rename(directory)


def test_the_copy_goes_to_save_path_but_over_nothing_else(run: Any, tmp_path: Path) -> None:
    target = tmp_path / "shipped"
    student = run.config.student.model_copy(update={"save_path": str(target)})
    config = run.config.model_copy(update={"student": student})
    target.mkdir()
    (target / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"student\.save_path"):
        execute(STAGE, config, run.paths)
    assert (target / "thesis.txt").read_text(encoding="utf-8") == "mine"
    (target / "thesis.txt").unlink()
    for _ in range(2):  # the second time over our own earlier export
        execute(STAGE, config, run.paths, fresh=True)
        assert (target / "model.safetensors").exists()


def test_inputs_and_source_follow_the_configuration() -> None:
    both = Config.model_validate({"train": {"sft": {}, "distillation": {}}})
    assert (exported_stage(both), required_stages(both)) == ("distill", ("prepare", "distill", "evaluate"))
    only_sft = Config.model_validate({"train": {"sft": {}}})
    assert required_stages(only_sft) == ("prepare", "sft", "evaluate")


@pytest.mark.vllm
def test_vllm_completes_the_exported_files_token_for_token(run: Any) -> None:
    execute(STAGE, with_export(run.config, verify_prompts=5), run.paths)
    proof = json.loads(run.paths.export_verdict.read_text(encoding="utf-8"))["verification"]
    assert proof["verified"] is True
    assert proof["prompts"] == 5
    assert proof["equal"] + len(proof["ties"]) == 5
    assert proof["equal"] >= 4
    assert proof["tokens"] >= 5
    assert proof["engine"].startswith("vllm ")
    assert proof["largest_tie"] < proof["tie_tolerance"] == 1e-4
