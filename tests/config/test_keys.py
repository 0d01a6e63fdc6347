"""The schema as data: words for types, and the nearest spelling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from raystill.config.keys import all_keys, describe_type, find_key, nearest_keys


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.stpes", "training.steps"),
        ("temprature", "teacher.open.pipeline.temperature"),
        ("teacher.open.temperature", "teacher.open.pipeline.temperature"),
        ("learning_rte", "train.sft.learning_rate"),
        ("optimizer.lr", "train.sft.learning_rate"),
        ("train.sft.lr", "train.sft.learning_rate"),
        ("train.distillation.bfloat16", "train.distillation.bf16"),
        ("student.d_model", "student.hidden_size"),
        ("run.save_every", "training.save_every"),
        ("datasets.0.nam", "datasets.*.name"),
        ("kd.kd_temperature", "losses.kd_temperature"),
        ("max_checkpoints", "training.checkpoint_cleanup.max_checkpoints"),
        ("students", "student"),
    ],
)
def test_the_nearest_spelling(written: str, meant: str) -> None:
    assert meant in nearest_keys(written)


def test_nothing_near_is_nothing() -> None:
    assert nearest_keys("zzzzzzzz") == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Field(gt=0)], "a whole number > 0"),
        (Annotated[float, Field(ge=0.0, lt=0.5)] | None, "a number >= 0 and < 0.5 or null"),
        (bool, "true or false"),
        (Literal["a", "b"], "one of a, b"),
        (Literal[True], "only true"),
        (list[str], "a list of text"),
        (dict[str, Any] | None, "a block of keys or null"),
        (Annotated[str, Field(min_length=1)], "text that is not empty"),
        (Literal["all-linear"] | list[str], "only all-linear or a list of text"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe_type(annotation) == words


def test_every_key_has_a_meaning_and_limits() -> None:
    for key in all_keys().values():
        assert key.description.strip(), key.path
        assert key.allowed, key.path


def test_defaults_and_marks() -> None:
    steps, unsupported = find_key("training.save_every"), find_key("export.gguf")
    assert steps is not None
    assert (steps.default, steps.required, steps.not_yet) == (100, False, False)
    assert unsupported is not None
    assert unsupported.not_yet
    name = find_key("datasets.3.name")
    assert name is not None
    assert (name.path, name.required) == ("datasets.*.name", True)


@pytest.mark.parametrize(
    "path",
    [
        "device.type", "cuda.cuda_alloc_conf", "cuda.allow_tf32", "teacher.base.prompt_length",
        "teacher.open.pipeline.use_cache", "teacher.open.tokenizer.clean_up_tokenization_spaces",
        "teacher.closed.pipeline.batch_size", "assistant.quantization.bnb_4bit_quant_type",
        "assistant.lora.lora_r", "assistant.inference.max_new_tokens", "student.max_position_embeddings",
        "student.repo", "train.sft.experiment.dataset_tags", "train.sft.tokenizer.mlm",
        "train.sft.peft.lora.modules_to_save", "train.distillation.evaluation_strategy",
        "train.distillation.knowledgedistillation.loss.reduction", "datasets.*.external_local_path",
        "training.steps", "training.save_every", "training.checkpoint_cleanup.max_checkpoints",
        "training.checkpoint_cleanup.min_free_space_gb", "curate", "curriculum", "process_supervision",
        "judge", "drafter", "qat", "tune", "evaluation", "hardware_profiles", "export.onnx",
        "export.coreml", "export.gguf", "cluster", "tracing", "run",
    ],
)  # fmt: skip
def test_documented_keys_keep_their_paths(path: str) -> None:
    assert path in all_keys()
