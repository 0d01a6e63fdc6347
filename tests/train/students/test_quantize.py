"""QLoRA: a 4-bit base trains its adapter, and what is saved is what was trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from raystill.config.models import Quantization
from raystill.errors import EnvironmentFault
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.stage import SFT_STAGE
from raystill.train.students import quantize
from raystill.train.students.quantize import dequantized_copy, is_quantized, load_in_4bit

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
IDS = torch.arange(24).unsqueeze(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, decoder: Any) -> str:
    directory = tmp_path_factory.mktemp("base") / "model"
    decoder("llama", hidden_size=64, intermediate_size=64, head_dim=16).save_pretrained(directory)
    return str(directory)


def load(name: str, **keys: Any) -> Any:
    return load_in_4bit(name, Quantization(load_in_4bit=True, **keys), CPU, "sdpa")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_the_copy_has_the_values_of_the_4_bit_weights(checkpoint: str, kind: str, double: bool) -> None:
    model = load(checkpoint, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, bfloat16=False)
    layer = model.model.layers[0].self_attn.q_proj
    state = layer.weight.quant_state
    assert layer.weight.dtype == torch.uint8 and state.quant_type == kind and state.nested is double
    assert layer.compute_dtype == torch.float32 and model.lm_head.weight.dtype == torch.float32
    assert is_quantized(model) and not any(p.requires_grad for p in model.parameters())
    plain = dequantized_copy(model)
    original = AutoModelForCausalLM.from_pretrained(checkpoint)
    error = plain.model.layers[0].self_attn.q_proj.weight - original.model.layers[0].self_attn.q_proj.weight
    assert 0 < error.abs().max() < 0.02
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits, rtol=1e-3, atol=1e-4
        )


def test_the_compute_type_is_the_keys(checkpoint: str) -> None:
    assert load(checkpoint, bfloat16=True).model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


def test_an_evaluation_leaves_the_weights_readable(checkpoint: str) -> None:
    """On CPUs with AVX-512 the library would rearrange them for inference, then train on those."""
    model = load(checkpoint, bfloat16=True)
    before = dequantized_copy(model).model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert torch.equal(dequantized_copy(model).model.layers[1].mlp.down_proj.weight, before)


def qlora_config(world: Any, name: str, **training: Any) -> Any:
    base = world.config("base", training={"steps": 4})
    if not world.paths(base).model("sft").exists():
        world.train(base, "sft")
    return world.config(
        name,
        assistant={
            "model": {"name": str(world.paths(base).model("sft"))},
            "quantization": {"load_in_4bit": True},
            "lora": {"lora_r": 4, "lora_alpha": 8},
        },
        training=training,
    )


def test_the_assistant_trains_in_4_bits_and_merges_what_it_trained(world: Any) -> None:
    """I42."""
    from peft import PeftModel

    config = qlora_config(world, "qlora", steps=20)
    summary = world.train(config, "sft")
    losses = [line["train/loss"] for line in world.metrics(config, "sft") if "train/loss" in line]
    assert losses[-1] < losses[0]
    counts = summary["counts"]
    start, end = (
        AutoModelForCausalLM.from_pretrained(path).eval()
        for path in (world.paths(config).initial_model("sft"), world.paths(config).model("sft"))
    )
    whole = sum(p.numel() for p in start.parameters())
    assert counts["parameters"] == whole + counts["parameters_trained"]
    saved = json.loads((world.paths(config).model("sft") / "config.json").read_text())
    assert "quantization_config" not in saved
    adapted = PeftModel.from_pretrained(start, world.paths(config).stage_dir("sft") / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            end(input_ids=IDS).logits, adapted(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
        )
        run = assemble(world.job(config, "sft"), WorkerGroup())
        assert is_quantized(run.state.student.causal_lm)


def test_qlora_resumes_byte_for_byte(world: Any) -> None:
    from raystill.train.worker import train_worker

    class StopError(Exception):
        pass

    class Once:
        def report(self, step: int, metrics: dict[str, Any]) -> None:
            raise StopError

    whole, broken = (qlora_config(world, name) for name in ("whole", "broken"))
    world.train(whole, "sft")
    with pytest.raises(StopError):
        train_worker(world.job(broken, "sft"), WorkerGroup(), Once())
    world.train(broken, "sft")
    assert world.weights(whole, "sft") == world.weights(broken, "sft")


def test_without_the_package_the_stage_is_refused_at_start(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I34."""
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    config = qlora_config(world, "missing")
    assert SFT_STAGE.preflight is not None
    with pytest.raises(EnvironmentFault, match="bitsandbytes") as caught:
        SFT_STAGE.preflight(config, world.paths(config))
    assert caught.value.exit_code == 4
