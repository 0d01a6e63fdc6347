"""The model that trains: causal, built as the keys say, adapted and merged without loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raystill.errors import ConfigError, DataError
from raystill.train.assembly import assemble
from raystill.train.build import build_model, build_student, load_causal_lm
from raystill.train.group import WorkerGroup
from raystill.train.output import ADAPTER_DIRECTORY, copy_model
from raystill.train.settings import resolve_settings
from raystill.train.student import Student, validate_head

CPU = torch.device("cpu")
LORA = {"peft": {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}}}


def build(world: Any, stage: Any = "distill", **sections: Any) -> Student:
    config = world.config(**sections)
    settings = resolve_settings(config, stage)
    model = build_model(config, world.paths(config), settings, world.chat, CPU, [])
    return build_student(model, settings)


def test_a_fresh_student_has_the_keys_shape_and_seed(world: Any) -> None:
    student = build(world)
    config = student.causal_lm.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (32, 2, 2)
    assert student.vocab_size == len(world.chat.tokenizer) and student.context == 128
    assert student.causal_lm.dtype == torch.float32
    same, other = build(world), build(world, run={"seed": 1})
    first, again, different = (next(iter(s.network.parameters())) for s in (student, same, other))
    assert torch.equal(first, again) and not torch.equal(first, different)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_both_families_build_with_rope_theta_and_padding(world: Any, model_type: str) -> None:
    keys = {"model_type": model_type, "rope_theta": 5000.0, "vocab_size": 320, "tie_word_embeddings": False}
    student = build(world, student=keys)
    assert student.causal_lm.config.model_type == model_type
    assert student.causal_lm.config.rope_parameters["rope_theta"] == 5000.0
    assert student.vocab_size == 320
    head = student.head().weight_VD
    assert head.data_ptr() != student.causal_lm.get_input_embeddings().weight.data_ptr()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="259"):
        build(world, student={"vocab_size": 200})


def test_the_student_is_causal(world: Any) -> None:
    """Changing token t changes nothing before t, and something at t; a longer prefix computes the same."""
    student = build(world)
    student.network.eval()
    ids = torch.randint(0, 250, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 250
    with torch.no_grad():
        before, after = (student.causal_lm(input_ids=x).logits for x in (ids, changed))
        prefix = student.causal_lm(input_ids=ids[:, :5]).logits
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7:], after[:, 7:])
    torch.testing.assert_close(before[:, :5], prefix)


def test_lora_trains_few_weights_and_leaves_the_base_alone(world: Any) -> None:
    config = world.config(train={"distillation": LORA})
    summary = world.train(config)
    counts = summary["counts"]
    assert 0 < counts["parameters_trained"] < 0.6 * counts["parameters"]
    paths = world.paths(config)
    start = AutoModelForCausalLM.from_pretrained(paths.initial_model("distill"))
    end = AutoModelForCausalLM.from_pretrained(paths.model("distill"))
    assert torch.equal(start.get_input_embeddings().weight, end.get_input_embeddings().weight)
    moved = [n for n, p in end.named_parameters() if not torch.equal(p, start.get_parameter(n))]
    assert moved and all("proj" in name for name in moved)


@pytest.mark.parametrize("save", [[], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_equals_base_and_adapter(world: Any, save: list[str], tied: bool) -> None:
    """I42: no adapter stays unmerged in what is exported."""
    from peft import PeftModel

    lora = {"peft": {"lora": {"r": 4, "lora_alpha": 8, "modules_to_save": save}}}
    config = world.config(train={"distillation": lora}, student={"tie_word_embeddings": tied})
    world.train(config)
    paths = world.paths(config)
    merged = AutoModelForCausalLM.from_pretrained(paths.model("distill")).eval()
    base = AutoModelForCausalLM.from_pretrained(paths.initial_model("distill"))
    adapted = PeftModel.from_pretrained(base, paths.stage_dir("distill") / ADAPTER_DIRECTORY).eval()
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5
        )


def test_lora_resumes_byte_for_byte(world: Any) -> None:
    class StopError(Exception):
        pass

    class Once:
        def report(self, step: int, metrics: dict[str, Any]) -> None:
            raise StopError

    from raystill.train.worker import train_worker

    whole, broken = (world.config(name, train={"distillation": LORA}) for name in ("whole", "broken"))
    world.train(whole)
    with pytest.raises(StopError):
        train_worker(world.job(broken), WorkerGroup(), Once())
    world.train(broken)
    assert world.weights(whole) == world.weights(broken)


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
def test_lora_names_that_match_nothing_are_refused_with_the_names_there_are(world: Any, key: str) -> None:
    """I31."""
    lora = {"peft": {"lora": {key: ["embed_token"]}}}
    with pytest.raises(ConfigError, match=r"no module is called embed_token;.*q_proj"):
        build(world, train={"distillation": lora})


def test_the_saved_model_stops_where_the_teacher_stops(world: Any) -> None:
    config = world.config()
    world.train(config)
    directory = world.paths(config).model("distill")
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = world.chat.tokenizer
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(directory)
    assert saved.chat_template == tokenizer.chat_template
    assert AutoConfig.from_pretrained(directory).eos_token_id == tokenizer.eos_token_id


def test_distillation_starts_from_the_sft_model(world: Any) -> None:
    config = world.config(train={"distillation": {"init": "auto"}})
    world.train(config, "sft")
    world.train(config, "distill")
    start = world.paths(config).initial_model("distill") / "model.safetensors"
    assert start.read_bytes() == world.weights(config, "sft")


def test_the_assistant_trains_with_its_own_lora_by_default(world: Any) -> None:
    base = world.config("base")
    world.train(base, "sft")
    model = {"model": {"name": str(world.paths(base).model("sft"))}}
    config = world.config(assistant={**model, "lora": {"lora_r": 2, "lora_alpha": 4}})
    settings = resolve_settings(config, "sft")
    assert settings.lora is not None and (settings.lora.r, settings.lora.lora_alpha) == (2, 4)
    counts = world.train(config, "sft")["counts"]
    assert counts["parameters_trained"] < counts["parameters"] / 2


def test_a_base_of_another_size_than_the_keys_is_refused(world: Any) -> None:
    base = world.config("base")
    world.train(base, "sft")
    name = str(world.paths(base).model("sft"))
    keys = {"base_model_name": name, "init": "base"}
    build(world, student=keys)
    with pytest.raises(ConfigError, match="hidden_size is 64, the base has 32"):
        build(world, student={**keys, "hidden_size": 64})


def test_pickle_weights_are_refused(world: Any, tmp_path: Any) -> None:
    """I13."""
    directory = tmp_path / "pickled"
    build(world).causal_lm.config.save_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="pickle"):
        load_causal_lm(str(directory), "sdpa")


def test_a_head_that_the_kernel_does_not_follow_is_refused(world: Any) -> None:
    student = build(world)
    forward = student.causal_lm.forward

    def scaled(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits = 3 * output.logits
        return output

    student.causal_lm.forward = scaled
    with pytest.raises(ConfigError, match="soft-capping"):
        validate_head(student)


def test_a_copy_replaces_a_model_but_nothing_else(world: Any, tmp_path: Any) -> None:
    from raystill.errors import EnvironmentFault

    run = assemble(world.job(world.config()), WorkerGroup())
    source = world.paths(world.config()).initial_model("distill")
    target = tmp_path / "copy"
    copy_model(source, target, overwrite=False)
    copy_model(source, target, overwrite=True)
    assert (target / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with pytest.raises(EnvironmentFault):
        copy_model(source, target, overwrite=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(EnvironmentFault):
        copy_model(source, foreign, overwrite=True)
    assert (foreign / "thesis.tex").exists() and run is not None
