"""The stage on real files: a student that is the teacher closes the whole gap, and broken ones fail."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.evaluate.inputs import load_held_out
from raystill.evaluate.models import count_stored_parameters, list_contestants
from raystill.evaluate.results import load_results
from raystill.evaluate.stage import STAGE, required_stages
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.requests import Request, save_requests
from raystill.text.prompt_table import save_prompts


@pytest.fixture(scope="module")
def run(small_run_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    built = small_run_module.build_small_run(tmp_path_factory.mktemp("evaluate"))
    execute(STAGE, built.config, built.paths)
    return built


@pytest.fixture
def copy(run: Any, tmp_path: Path, small_run_module: ModuleType) -> Any:
    """The run before its evaluation, free to be damaged."""
    shutil.copytree(run.paths.root.parent.parent, tmp_path / "copy")
    config = small_run_module.build_config(
        tmp_path / "copy" / "runs", run.paths.root.parent.parent / "teacher"
    )
    paths = RunPaths.from_config(config)
    shutil.rmtree(paths.stage_dir("evaluate"))
    return small_run_module.SmallRun(config, paths, run.prompts, run.rows)


def test_the_teacher_itself_closes_the_whole_gap(run: Any) -> None:
    results = load_results(run.paths.evaluation_results)
    assert [row.key for row in results.rows] == ["teacher", "untrained", "sft", "distill"]
    teacher, untrained, sft, distill = results.rows
    assert distill.exact_match == teacher.exact_match
    assert distill.kl_to_teacher is not None
    assert distill.kl_to_teacher.value == pytest.approx(0.0, abs=1e-3)
    assert distill.top1_agreement is not None
    assert distill.top1_agreement.value == 1.0
    gap = results.gap_of("distill")
    assert gap is not None
    assert gap.estimate is not None
    assert gap.estimate.value == 1.0
    assert untrained.kl_to_teacher is not None
    assert sft.kl_to_teacher is not None
    assert untrained.kl_to_teacher.value > sft.kl_to_teacher.value > 1e-3
    assert results.num_prompts_by_task == {"exact": 8, "text": 8, "tool_call": 8}
    assert teacher.exact_match is not None
    assert teacher.exact_match.n == 16


def test_parameters_are_those_of_the_files(run: Any) -> None:
    results = load_results(run.paths.evaluation_results)
    counted = count_stored_parameters(run.paths.model("distill"))
    assert {row.parameters for row in results.rows} == {counted}


def test_completions_are_kept_for_every_model(run: Any) -> None:
    table = pq.read_table(run.paths.evaluation_completions)
    assert table.num_rows == 24
    assert table.column("teacher_completion").to_pylist() == table.column("distill_completion").to_pylist()
    assert [row.completion for row in run.rows] == table.column("teacher_completion").to_pylist()
    assert set(table.column("sft_correct").to_pylist()) <= {True, False, None}


def test_a_second_run_is_skipped(run: Any) -> None:
    assert execute(STAGE, run.config, run.paths).skipped


def test_without_held_out_prompts_it_fails(copy: Any) -> None:
    save_prompts(copy.paths.prompt_table, [])
    with pytest.raises(DataError, match="no prompts are held out"):
        execute(STAGE, copy.config, copy.paths)


def test_too_few_prompts_fail(copy: Any) -> None:
    save_prompts(copy.paths.prompt_table, copy.prompts[:9])
    with pytest.raises(DataError, match="too few"):
        execute(STAGE, copy.config, copy.paths)
    assert not copy.paths.evaluation_results.exists()


def test_prompts_without_teacher_output_are_counted(copy: Any) -> None:
    extra = [copy.prompts[0].__class__(**{**vars(copy.prompts[0]), "id": f"new{i}"}) for i in range(3)]
    save_prompts(copy.paths.prompt_table, [*copy.prompts, *extra])
    execute(STAGE, copy.config, copy.paths)
    results = load_results(copy.paths.evaluation_results)
    assert (results.num_prompts, results.num_prompts_without_teacher_output) == (24, 3)


def test_answers_are_found_by_the_names_that_their_prompts_have_in_this_run(copy: Any) -> None:
    """Rows that were imported, or that another run paid for, bear other ids and sample indices."""
    save_prompts(copy.paths.prompt_table, [replace(prompt, id=f"own-{prompt.id}") for prompt in copy.prompts])
    requests = [Request(row.key, f"own-{row.prompt_id}", "eval") for row in copy.rows]
    requests[1] = replace(requests[1], prompt_id=requests[0].prompt_id, sample_index=1)
    save_requests(copy.paths.requests, requests)
    held_out = load_held_out(copy.config, copy.paths)
    assert [row.key for row in held_out.rows] == [copy.rows[0].key, *(row.key for row in copy.rows[2:])]
    assert held_out.num_without_output == 1


def test_a_missing_model_fails(copy: Any) -> None:
    shutil.rmtree(copy.paths.model("sft"))
    with pytest.raises(DataError, match="there is no model"):
        execute(STAGE, copy.config, copy.paths)


def test_a_model_of_nan_fails(copy: Any, small_run_module: ModuleType) -> None:
    tokenizer = small_run_module.load_tokenizer(str(copy.paths.model("sft")))
    broken = small_run_module.build_model(1)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    small_run_module.save_model(broken, tokenizer, copy.paths.model("distill"))
    with pytest.raises(DataError, match=r"Student after KD: .*not finite"):
        execute(STAGE, copy.config, copy.paths)


def test_a_model_that_stops_at_once_fails(copy: Any, small_run_module: ModuleType) -> None:
    tokenizer = small_run_module.load_tokenizer(str(copy.paths.model("sft")))
    silent = small_run_module.build_model(1)
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.1 if "embed" in name else 0.0)
        silent.model.embed_tokens.weight[tokenizer.eos_token_id] = 1.0
    small_run_module.save_model(silent, tokenizer, copy.paths.model("distill"))
    with pytest.raises(DataError, match=r"Student after KD wrote nothing.*at once"):
        execute(STAGE, copy.config, copy.paths)


def config_with(**train: Any) -> Config:
    return Config.model_validate({"train": train})


def test_inputs_follow_the_configuration() -> None:
    assert required_stages(config_with()) == ("prepare", "generate", "score")
    both = config_with(sft={}, distillation={})
    assert required_stages(both) == ("prepare", "generate", "score", "sft", "distill")
    bare = Config.model_validate({"teacher": {"signals": {"num_logprobs": 0}}, "train": {"sft": {}}})
    assert required_stages(bare) == ("prepare", "generate", "sft")


def test_answers_that_nothing_can_score_are_compared_by_text() -> None:
    closed: dict[str, Any] = {"closed": {"model": {"name": "distant"}}}
    scored = closed | {"open": {"model": {"name": "near"}}}

    def inputs(teacher: dict[str, Any], **train: Any) -> tuple[str, ...]:
        return required_stages(Config.model_validate({"teacher": teacher, "train": train}))

    assert inputs(closed, sft={}) == ("prepare", "generate", "sft")
    assert inputs(scored, sft={}) == ("prepare", "generate", "score", "sft")
    assert inputs(closed, distillation={}) == ("prepare", "generate", "score", "distill")
    online = {"teacher": {"source": "online", "models": [{"name": "near"}]}}
    assert inputs(closed, distillation=online) == ("prepare", "generate", "distill")


def test_the_configuration_names_the_models() -> None:
    config = config_with(sft={"model_name": "Plain"}, distillation={"run_name": "Distilled"})
    _, sft, distill = list_contestants(config, RunPaths.from_config(config))
    assert (sft.label, distill.label) == ("Plain", "Distilled")


def test_with_an_assistant_the_untrained_row_is_the_student() -> None:
    assistant = {"model": {"name": "org/model"}, "tokenizer": {"padding_side": "right"}}
    config = Config.model_validate({"assistant": assistant, "train": {"sft": {}, "distillation": {}}})
    paths = RunPaths.from_config(config)
    untrained, sft, distill = list_contestants(config, paths)
    assert untrained.directory == paths.initial_model("distill")
    assert (sft.label, sft.padding_side, sft.max_new_tokens) == ("Assistant after SFT", "right", 1024)
    assert distill.directory == paths.model("distill")
    plain = config_with(sft={}, distillation={})
    assert list_contestants(plain, paths)[0].directory == paths.initial_model("sft")
