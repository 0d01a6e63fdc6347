"""Students read held-out prompts in their own tokens: those of closed teachers, and of other families."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from raystill.evaluate.results import load_results
from raystill.evaluate.stage import STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute


@pytest.fixture(scope="module")
def built(small_run_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_run_module.build_small_run(tmp_path_factory.mktemp("own_tokens"), num_prompts=12)


@pytest.fixture
def copy(built: Any, tmp_path: Path, small_run_module: ModuleType) -> Any:
    root = built.paths.root.parent.parent
    shutil.copytree(root, tmp_path / "copy")
    sections = {"evaluation": {"min_samples": 4}}
    config = small_run_module.build_config(tmp_path / "copy" / "runs", root / "teacher", **sections)
    return small_run_module.SmallRun(config, RunPaths.from_config(config), built.prompts, built.rows)


def rewrite_store(run: Any, module: ModuleType, rows: list[Any], **changes: Any) -> None:
    """Put `rows` in the place of the store, whose teacher is known by `changes`."""
    from raystill.store.store import load_store

    identity = load_store(run.paths.store).identity.model_copy(update=changes)
    shutil.rmtree(run.paths.store)
    module._fill_store(run.paths, identity, rows)


def save_tokenizer(run: Any, tokenizer: Any) -> None:
    for stage in ("sft", "distill"):
        tokenizer.save_pretrained(run.paths.model(stage))
        tokenizer.save_pretrained(run.paths.initial_model(stage))


def evaluate(run: Any) -> Any:
    execute(STAGE, run.config, run.paths)
    return load_results(run.paths.evaluation_results)


def test_answers_that_are_text_are_measured(copy: Any, small_run_module: ModuleType) -> None:
    """A closed teacher's rows have no ids: prompts are rendered by the student's template."""
    none = np.zeros(0, np.int32)
    usage = '{"completion_tokens": 7}'
    rows = [
        replace(row, prompt_token_ids=none, completion_token_ids=none, signal=None, usage=usage)
        for row in copy.rows
    ]
    unknown: dict[str, Any] = {"tokenizer_sha256": "", "chat_template_sha256": "", "num_logprobs": 0}
    rewrite_store(copy, small_run_module, rows, **unknown)
    signals = copy.config.teacher.model_copy(
        update={"signals": copy.config.teacher.signals.model_copy(update={"num_logprobs": 0})}
    )
    copy = replace(copy, config=copy.config.model_copy(update={"teacher": signals}))
    results = evaluate(copy)
    teacher, _, _, distill = results.rows
    assert distill.exact_match == teacher.exact_match and teacher.exact_match.value > 0
    assert distill.num_without_room == 0 and distill.num_empty < 12
    assert distill.kl_to_teacher is None and distill.perplexity is not None
    assert teacher.mean_completion_tokens == 7.0


def test_tokens_of_its_own_beside_the_teachers_cost_no_metric(
    copy: Any, small_run_module: ModuleType
) -> None:
    before = evaluate(copy).row("distill")
    shutil.rmtree(copy.paths.stage_dir("evaluate"))
    wider = small_run_module.load_tokenizer(str(copy.paths.model("sft")))
    wider.add_tokens(["<call>"], special_tokens=True)
    save_tokenizer(copy, wider)
    after = evaluate(copy).row("distill")
    assert after.kl_to_teacher == before.kl_to_teacher
    assert after.exact_match == before.exact_match


def test_the_teachers_tokens_under_other_numbers_cost_no_metric(
    copy: Any, small_run_module: ModuleType
) -> None:
    """The distilled model with its vocabulary shuffled is the same model."""
    before = evaluate(copy).row("distill")
    shutil.rmtree(copy.paths.stage_dir("evaluate"))
    other = small_run_module.load_tokenizer(str(copy.paths.model("sft")))
    backend = json.loads(other.backend_tokenizer.to_str())
    last = max(backend["model"]["vocab"].values())
    backend["model"]["vocab"] = {token: last - i for token, i in backend["model"]["vocab"].items()}
    other.add_tokens(["<call>"], special_tokens=True)
    save_tokenizer(copy, other)
    for stage in ("sft", "distill"):
        for directory in (copy.paths.model(stage), copy.paths.initial_model(stage)):
            file = directory / "tokenizer.json"
            saved = json.loads(file.read_text(encoding="utf-8"))
            saved["model"]["vocab"] = backend["model"]["vocab"]
            file.write_text(json.dumps(saved), encoding="utf-8")
    weights = copy.paths.model("distill") / "model.safetensors"
    tensors = load_file(weights)
    embedding = tensors["model.embed_tokens.weight"].clone()
    embedding[: last + 1] = embedding[: last + 1].flip(0)
    save_file({**tensors, "model.embed_tokens.weight": embedding}, weights, metadata={"format": "pt"})
    after = evaluate(copy).row("distill")
    assert after.kl_to_teacher.value == pytest.approx(before.kl_to_teacher.value, abs=1e-5)
    assert after.exact_match == before.exact_match
    # One answer has an id beyond the tokenizer, which nothing can rename: it has no signal there.
    assert after.top1_agreement.value == before.top1_agreement.value == 1.0


def test_another_template_is_what_the_student_is_asked_with(copy: Any, small_run_module: ModuleType) -> None:
    """Equal ids, and the prompts end otherwise: what the teacher said of its answers still counts."""
    before = evaluate(copy).row("distill")
    shutil.rmtree(copy.paths.stage_dir("evaluate"))
    tokenizer = small_run_module.load_tokenizer(str(copy.paths.model("sft")))
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant says\n")
    save_tokenizer(copy, tokenizer)
    after = evaluate(copy).row("distill")
    assert after.kl_to_teacher.value != before.kl_to_teacher.value
    assert after.kl_to_teacher.n == before.kl_to_teacher.n


def test_a_student_of_another_family_has_no_distance_in_tokens(
    copy: Any, small_run_module: ModuleType
) -> None:
    """Its rows are tokenised anew, as in its training; the teacher's logprobs are of other tokens."""
    foreign = {"tokenizer_sha256": "f" * 64, "chat_template_sha256": "f" * 64}
    rows = [replace(row, prompt_token_ids=row.prompt_token_ids + 1) for row in copy.rows]
    rewrite_store(copy, small_run_module, rows, **foreign)
    results = evaluate(copy)
    teacher, _, _, distill = results.rows
    assert distill.exact_match == teacher.exact_match
    assert distill.kl_to_teacher is None and distill.top1_agreement is None
    assert distill.token_accuracy is not None
