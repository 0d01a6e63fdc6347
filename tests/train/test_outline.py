"""What a stage refuses before a teacher is asked: adapters, shapes and tokens that don't fit its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from raystill.errors import ConfigError, DataError, RaystillError
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.stage import Stage
from raystill.text.chat import load_chat_format
from raystill.train.build import build_model
from raystill.train.outline import outline_model
from raystill.train.settings import resolve_settings
from raystill.train.stage import DISTILL_STAGE, SFT_STAGE

STAGES = {"sft": SFT_STAGE, "distill": DISTILL_STAGE}


def save_base(world: Any, name: str, **shape: Any) -> str:
    """A checkpoint with random weights and the world's tokenizer."""
    sizes = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **(sizes | shape)))
    model.save_pretrained(world.root / name)
    world.chat.tokenizer.save_pretrained(world.root / name)
    return str(world.root / name)


def save_adapter(base: str, directory: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(directory)
    return str(directory)


def from_base(base: str, **student: Any) -> dict[str, Any]:
    """A student that starts from a checkpoint, without the world's keys for a fresh one."""
    unset = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    none = dict.fromkeys((*unset, "num_key_value_heads", "max_position_embeddings", "model_type"))
    return {**none, "base_model_name": base, "init": "base", **student}


def foresee(world: Any, stage: Stage, **sections: Any) -> None:
    assert stage.foresee is not None
    config = world.config(**sections)
    stage.foresee(config, world.paths(config))


def refuse(world: Any, stage: Stage, kind: type[RaystillError], text: str, **sections: Any) -> None:
    with pytest.raises(kind, match=text) as caught:
        foresee(world, stage, **sections)
    assert caught.value.problems[0].where and caught.value.problems[0].fix
    assert not world.paths(world.config(**sections)).root.exists()


@pytest.mark.parametrize("stage", ["sft", "distill"])
@pytest.mark.parametrize("start", ["fresh", "base", "after sft"])
def test_lora_that_fits_no_layer_is_refused_before_a_teacher_is_asked(
    empty_world: Any, stage: str, start: str
) -> None:
    """I31, I32: whether the model is new, a checkpoint, or what sft is going to leave."""
    section = {"sft": "sft", "distill": "distillation"}[stage]
    student = from_base(save_base(empty_world, "base")) if start == "base" else {}
    init = "sft" if start == "after sft" else "student"

    def train(**lora: Any) -> dict[str, Any]:
        train: dict[str, Any] = {"sft": {}, "distillation": {"init": init}}
        train[section] = {**train[section], "peft": {"lora": lora}}
        return {"train": train, "student": student}

    unknown = train(target_modules=["c_attn"])
    refuse(empty_world, STAGES[stage], ConfigError, r"no module is called c_attn;.*q_proj", **unknown)
    refuse(empty_world, STAGES[stage], ConfigError, "rank 64 is above the full rank 32", **train(r=64))
    foresee(empty_world, STAGES[stage], **train(target_modules=["q_proj"], r=4))


def test_lora_of_a_4_bit_assistant_is_held_against_its_config(empty_world: Any) -> None:
    """I31, I32: no weights are read for it."""
    base = Path(save_base(empty_world, "base"))
    (base / "model.safetensors").write_bytes(b"")
    assistant = {"model": {"name": str(base)}, "quantization": {"load_in_4bit": True}, "lora": {"lora_r": 64}}
    refuse(empty_world, SFT_STAGE, ConfigError, "rank 64", assistant=assistant)
    foresee(empty_world, SFT_STAGE, assistant=assistant | {"lora": {"lora_r": 4}})


@pytest.mark.parametrize("init", ["base", "shrink"])
def test_an_adapter_of_another_base_is_refused_with_both_sizes(empty_world: Any, init: str) -> None:
    """I32: before a teacher is asked."""
    base, other = save_base(empty_world, "base"), save_base(empty_world, "other", hidden_size=48)
    shape = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = shape if init == "shrink" else {}
    fitting = save_adapter(base, empty_world.root / "fitting")
    foresee(empty_world, SFT_STAGE, student=from_base(base, init=init, adapter=fitting, **shape))
    foreign = save_adapter(other, empty_world.root / "foreign")
    student = from_base(base, init=init, adapter=foreign, **shape)
    refuse(
        empty_world, SFT_STAGE, DataError, r"can't be merged.*q_proj.*\[4, 48\].*\[4, 32\]", student=student
    )
    (empty_world.root / "empty").mkdir()
    student = from_base(base, init=init, adapter=str(empty_world.root / "empty"), **shape)
    refuse(empty_world, SFT_STAGE, DataError, "adapter_config", student=student)


def test_a_student_of_another_shape_than_its_base_is_refused_without_its_weights(empty_world: Any) -> None:
    base = Path(save_base(empty_world, "base"))
    (base / "model.safetensors").write_bytes(b"")
    wide = from_base(str(base), hidden_size=64)
    refuse(empty_world, SFT_STAGE, ConfigError, "hidden_size is 64, the base has 32", student=wide)
    long = from_base(str(base), max_position_embeddings=4096)
    refuse(empty_world, SFT_STAGE, ConfigError, "has learnt 128 positions", student=long)
    (base / "config.json").write_text("{")
    broken = from_base(str(base), tokenizer=str(empty_world.tokenizer))
    refuse(empty_world, SFT_STAGE, DataError, "can't be loaded", student=broken)


@pytest.mark.parametrize("init", ["fresh", "base", "shrink"])
def test_the_outline_is_the_model_that_is_built(empty_world: Any, init: str) -> None:
    student: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = save_base(empty_world, "base")
    if init == "base":
        student = from_base(base)
    elif init == "shrink":
        student |= {"base_model_name": base, "init": "shrink", "model_type": None}
    config = empty_world.config(student=student)
    paths, chat = empty_world.paths(config), empty_world.chat
    outline = outline_model(config, paths, "sft", chat)
    model = build_model(config, paths, resolve_settings(config, "sft"), chat, torch.device("cpu"), [])
    assert all(parameter.device.type == "meta" for parameter in outline.parameters())
    assert [(name, tuple(parameter.shape)) for name, parameter in outline.named_parameters()] == [
        (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    ]


def test_tokens_that_the_student_lacks_are_seen_before_a_teacher_is_asked(
    empty_world: Any, tokenizer_maker: Any
) -> None:
    """I26: unless the store is there, which says itself whose tokens it holds."""
    richer = empty_world.root / "richer"
    tokenizer_maker(extra=("ab", "cd")).save_pretrained(richer)
    teacher = {"open": {"model": {"name": str(richer)}}}
    student = {"tokenizer": str(empty_world.tokenizer)}
    lacking = r"tokenizers differ .*2 tokens have no counterpart, such as \d+: 'ab'"
    both = {"teacher": teacher, "student": student}
    refuse(empty_world, DISTILL_STAGE, DataError, lacking, **both)
    foresee(empty_world, SFT_STAGE, **both)
    foresee(empty_world, DISTILL_STAGE, **both, losses={"kl_weight": 0.0, "ce_weight": 1.0})
    superset = {"teacher": {"open": {"model": {"name": str(empty_world.tokenizer)}}}}
    foresee(empty_world, DISTILL_STAGE, **superset, student={"tokenizer": str(richer)})
    config = empty_world.config(**both)
    manifest = Manifest(stage="generate", fingerprint="x", config={}, inputs={})
    save_manifest(empty_world.paths(config).stage_dir("generate"), manifest)
    foresee(empty_world, DISTILL_STAGE, **both)


def test_an_assistant_that_is_to_teach_is_compared_before_sft_trains_it(
    empty_world: Any, tokenizer_maker: Any
) -> None:
    """I26: online, too."""
    base = save_base(empty_world, "assistant", vocab_size=300)
    tokenizer_maker(extra=("ab", "cd")).save_pretrained(base)
    assert len(load_chat_format(base).tokenizer) > len(empty_world.chat.tokenizer)
    train = {"sft": {}, "distillation": {"init": "student", "teacher": {"source": "online"}}}
    sections = {"assistant": {"model": {"name": base}}, "train": train}
    student = {"tokenizer": str(empty_world.tokenizer)}
    refuse(empty_world, DISTILL_STAGE, DataError, "token by token", **sections, student=student)
    foresee(empty_world, DISTILL_STAGE, **sections, student={"tokenizer": base})
