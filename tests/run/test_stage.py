"""execute(): skip what is complete, resume what is not, refuse what has changed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, EnvironmentFault
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths
from raystill.run.stage import Stage, StageContext, StageResult, changed_keys, config_slice, execute

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def fresh_calls() -> None:
    CALLS.clear()


def make(tmp_path: Path, **sections: Any) -> tuple[Config, RunPaths]:
    config = Config.model_validate({"run": {"name": "r", "dir": str(tmp_path)}} | sections)
    return config, RunPaths.from_config(config)


def prepare_body(context: StageContext) -> StageResult:
    CALLS.append("prepare")
    path = context.output / "prompts.txt"
    path.write_text(f"seed {context.config.run.seed}", encoding="utf-8")
    context.events.emit("prompts_written", rows=1)
    return StageResult(counts={"prompts": 1}, metrics={"mean": 0.5}, files=[path])


def generate_body(context: StageContext) -> StageResult:
    CALLS.append("generate")
    done = sorted(path.name for path in context.output.glob("part-*"))
    (context.output / f"part-{len(done)}").write_text(context.inputs["prepare"].fingerprint, encoding="utf-8")
    return StageResult(counts={"found": len(done)}, content={"rows": 7})


PREPARE = Stage("prepare", ("run.seed", "prompts"), lambda config: (), prepare_body)
GENERATE = Stage("generate", ("teacher.signals.num_logprobs",), lambda config: ("prepare",), generate_body)


def test_a_complete_stage_is_skipped_and_its_manifest_tells_all(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    first = execute(PREPARE, config, paths)
    again = execute(PREPARE, config, paths)
    assert (first.skipped, again.skipped, CALLS) == (False, True, ["prepare"])
    assert again.manifest == first.manifest == load_manifest(paths.stage_dir("prepare"))
    assert first.manifest.counts == {"prompts": 1}
    assert first.manifest.config["run.seed"] == 0
    assert first.manifest.files["prompts.txt"].size_bytes == 6
    assert first.manifest.packages["pyarrow"]
    events = [json.loads(line) for line in paths.run_log.read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["stage_started", "prompts_written", "stage_finished"]
    assert {event["stage"] for event in events} == {"prepare"}


def test_fresh_also_discards_what_a_stage_keeps_elsewhere(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    gone: list[bool] = []
    stage = replace(PREPARE, discard=lambda config, paths: gone.append(paths.prompt_table.parent.exists()))
    execute(stage, config, paths)
    assert execute(stage, config, paths).skipped and gone == []
    assert not execute(stage, config, paths, fresh=True).skipped
    assert gone == [True]  # before the output itself: a kill in between leaves nothing to go on from wrongly


def test_an_input_that_is_not_complete_is_named(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    with pytest.raises(DataError, match="generate needs the output of prepare"):
        execute(GENERATE, config, paths)
    assert not paths.stage_dir("generate").exists()


def test_changed_keys_are_refused_by_name_and_others_do_not_matter(tmp_path: Path) -> None:
    """F32."""
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    other, _ = make(tmp_path, run={"name": "r", "dir": str(tmp_path), "seed": 3}, prompts={"split_seed": 4})
    with pytest.raises(ConfigError) as caught:
        execute(PREPARE, other, paths)
    assert "run.seed: 0 -> 3" in str(caught.value)
    assert "prompts.split_seed: 0 -> 4" in str(caught.value)
    assert "--fresh" in str(caught.value)
    harmless, _ = make(tmp_path, training={"save_every": 7})
    assert execute(PREPARE, harmless, paths).skipped
    assert CALLS == ["prepare"]


def test_fresh_replaces_the_output_and_what_was_made_from_it_is_refused(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    execute(GENERATE, config, paths)
    (paths.stage_dir("prepare") / "stray").write_text("x", encoding="utf-8")
    other, _ = make(tmp_path, run={"name": "r", "dir": str(tmp_path), "seed": 3})
    assert not execute(PREPARE, other, paths, fresh=True).skipped
    assert not (paths.stage_dir("prepare") / "stray").exists()
    assert [item.name for item in paths.root.iterdir() if item.name.startswith(".tmp-")] == []
    with pytest.raises(ConfigError, match="input prepare: made from another version"):
        execute(GENERATE, other, paths)
    assert not execute(GENERATE, other, paths, fresh=True).skipped


def test_an_equal_remake_of_an_input_changes_nothing_downstream(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    execute(GENERATE, config, paths)
    execute(PREPARE, config, paths, fresh=True)
    assert execute(GENERATE, config, paths).skipped


def test_a_failed_stage_is_resumed_with_its_parts(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)

    def fail(context: StageContext) -> StageResult:
        generate_body(context)
        raise DataError("row 7 is bad")

    with pytest.raises(DataError, match="row 7"):
        execute(replace(GENERATE, body=fail), config, paths)
    assert load_manifest(paths.stage_dir("generate")) is None
    assert execute(GENERATE, config, paths).manifest.counts == {"found": 1}
    assert "stage_failed" in paths.run_log.read_text(encoding="utf-8")


def test_a_killed_stage_is_resumed_or_refused_like_a_failed_one(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)

    def die(context: StageContext) -> StageResult:
        generate_body(context)
        (context.output / ".tmp-half").write_text("x", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
        return StageResult()

    pid = os.fork()
    if pid == 0:
        execute(replace(GENERATE, body=die), config, paths)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    other, _ = make(tmp_path, teacher={"signals": {"num_logprobs": 5}})
    with pytest.raises(ConfigError, match=r"num_logprobs: 20 -> 5"):
        execute(GENERATE, other, paths)
    outcome = execute(GENERATE, config, paths)
    assert outcome.manifest.counts == {"found": 1}
    assert not (paths.stage_dir("generate") / ".tmp-half").exists()


def test_given_content_decides_the_fingerprint_not_the_bytes(tmp_path: Path) -> None:
    prints = []
    for name in ("a", "b"):
        config, paths = make(tmp_path, run={"name": name, "dir": str(tmp_path)})
        execute(PREPARE, config, paths)
        prints.append(execute(GENERATE, config, paths).manifest.fingerprint)
    assert prints[0] == prints[1]


def test_a_missing_or_cut_file_is_noticed_before_it_is_used(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    file = paths.stage_dir("prepare") / "prompts.txt"
    file.write_text("se", encoding="utf-8")
    for stage in (PREPARE, GENERATE):
        with pytest.raises(DataError, match=r"prompts\.txt has 2 bytes, 6 were written"):
            execute(stage, config, paths)
    file.unlink()
    with pytest.raises(DataError, match=r"prompts\.txt is missing"):
        execute(PREPARE, config, paths)
    assert not execute(PREPARE, config, paths, fresh=True).skipped
    assert not execute(GENERATE, config, paths).skipped


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"config": 1}', '{"schema_version": 99}'])
def test_a_damaged_manifest_or_start_record_is_an_error_that_fresh_repairs(tmp_path: Path, text: str) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    (paths.stage_dir("prepare") / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="manifest"):
        execute(PREPARE, config, paths)
    (paths.stage_dir("prepare") / "manifest.json").unlink()
    (paths.stage_dir("prepare") / "started.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="unreadable"):
        execute(PREPARE, config, paths)
    assert not execute(PREPARE, config, paths, fresh=True).skipped


@pytest.mark.parametrize("other", [{"schema_version": 2, "attempts": 1}, {"schema_version": 0}])
def test_a_manifest_of_another_schema_names_who_wrote_it(tmp_path: Path, other: dict[str, Any]) -> None:
    """F31: whatever fields it has, the versions are said, not that it is unreadable."""
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    path = paths.stage_dir("prepare") / "manifest.json"
    facts = json.loads(path.read_text(encoding="utf-8")) | {"code_version": "7.1"} | other
    if other["schema_version"] == 0:
        del facts["fingerprint"]
    path.write_text(json.dumps(facts), encoding="utf-8")
    version = other["schema_version"]
    with pytest.raises(
        DataError, match=rf"raystill 7\.1 and has schema version {version}, this program reads 1"
    ):
        execute(PREPARE, config, paths)
    assert not execute(PREPARE, config, paths, fresh=True).skipped


def growing(external: dict[str, str]) -> tuple[Stage, Stage]:
    """Both stages take new data; the first reads `external`, of which "tools" must stay as it is."""
    prepare = replace(
        PREPARE,
        external_inputs=lambda config: dict(external),
        grows=True,
        fixed_inputs=("tools",),
        describe_new_data=lambda config, paths: ["2 prompts new: a, b"],
        body=lambda context: replace(prepare_body(context), content=dict(external)),
    )
    return prepare, replace(GENERATE, grows=True)


def test_changed_data_is_refused_with_what_it_changes_unless_accepted(tmp_path: Path) -> None:
    """F33."""
    config, paths = make(tmp_path)
    external = {"questions.jsonl": "aaa", "tools": "t"}
    prepare, generate = growing(external)
    for stage in (prepare, generate):
        execute(stage, config, paths)
    before = load_manifest(paths.stage_dir("prepare"))
    external["questions.jsonl"] = "bbb"
    with pytest.raises(ConfigError) as caught:
        execute(prepare, config, paths)
    assert "file:questions.jsonl: made from another version\n    2 prompts new: a, b" in str(caught.value)
    assert "--accept-new-data" in str(caught.value)
    assert load_manifest(paths.stage_dir("prepare")) == before
    assert not execute(prepare, config, paths, accept_new_data=True).skipped
    assert execute(prepare, config, paths).skipped
    with pytest.raises(ConfigError, match="--accept-new-data"):
        execute(generate, config, paths)
    grown = execute(generate, config, paths, accept_new_data=True)
    assert grown.manifest.counts == {"found": 1}  # it went on from what it had
    assert execute(generate, config, paths, accept_new_data=True).skipped


def test_settings_and_fixed_inputs_are_never_accepted(tmp_path: Path) -> None:
    """F32, F33."""
    config, paths = make(tmp_path)
    external = {"questions.jsonl": "aaa", "tools": "t"}
    prepare, _ = growing(external)
    execute(prepare, config, paths)
    external["questions.jsonl"] = "bbb"
    other, _ = make(tmp_path, prompts={"split_seed": 4})
    with pytest.raises(ConfigError, match="split_seed") as caught:
        execute(prepare, other, paths, accept_new_data=True)
    assert "--accept-new-data" not in str(caught.value)
    external["tools"] = "u"
    with pytest.raises(ConfigError, match="file:tools"):
        execute(prepare, config, paths, accept_new_data=True)
    external["tools"] = "t"
    with pytest.raises(ConfigError, match="--accept-new-data can't help: prepare has no part"):
        execute(replace(prepare, grows=False), config, paths, accept_new_data=True)


def test_new_data_that_was_accepted_before_a_kill_needs_no_second_word(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    external = {"questions.jsonl": "aaa"}
    prepare, _ = growing(external)
    execute(prepare, config, paths)
    external["questions.jsonl"] = "bbb"

    def fail(context: StageContext) -> StageResult:
        raise DataError("the disk is slow")

    with pytest.raises(DataError, match="slow"):
        execute(replace(prepare, body=fail), config, paths, accept_new_data=True)
    assert load_manifest(paths.stage_dir("prepare")) is None
    assert not execute(prepare, config, paths).skipped


def test_a_stage_directory_that_is_a_file_is_an_environment_fault(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    paths.root.mkdir(parents=True)
    paths.stage_dir("prepare").write_text("x", encoding="utf-8")
    with pytest.raises(EnvironmentFault):
        execute(PREPARE, config, paths)
    assert paths.stage_dir("prepare").read_text(encoding="utf-8") == "x"


def test_preflight_runs_only_when_there_is_work_and_writes_nothing(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    refused = replace(PREPARE, preflight=lambda config, paths: (_ for _ in ()).throw(DataError("no prompts")))
    with pytest.raises(DataError, match="no prompts"):
        execute(refused, config, paths)
    assert not paths.root.exists()
    execute(PREPARE, config, paths)
    assert execute(refused, config, paths).skipped


def test_a_changed_source_outside_is_refused_and_one_that_has_gone_is_not(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    outside = {"questions.jsonl": "aaa"}
    stage = replace(PREPARE, external_inputs=lambda config: dict(outside))
    execute(stage, config, paths)
    outside.clear()
    assert execute(stage, config, paths).skipped
    outside["questions.jsonl"] = "bbb"
    with pytest.raises(ConfigError, match=r"questions\.jsonl"):
        execute(stage, config, paths)


def test_a_moved_run_is_still_complete(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    execute(PREPARE, config, paths)
    paths.root.rename(tmp_path / "moved")
    elsewhere, moved = make(tmp_path, run={"name": "moved", "dir": str(tmp_path)})
    assert execute(PREPARE, elsewhere, moved).skipped


def test_slices_and_differences() -> None:
    config = Config.model_validate({"train": {"sft": {"steps": 5}}})
    values = config_slice(config, ("train.sft.steps", "train.distillation.steps", "run"))
    assert (values["train.sft.steps"], values["train.distillation.steps"]) == (5, None)
    assert values["run"]["seed"] == 0
    assert changed_keys({"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 1, "c": [2]}, "e": "x"}) == [
        "a.c: [1] -> [2]",
        'e: null -> "x"',
    ]
