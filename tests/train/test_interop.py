"""What others train loads here, what is trained here loads elsewhere; a student decodes as it trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raystill.losses.chunked import chunked_loss
from raystill.losses.teachers import TopKTeacher
from raystill.losses.terms import LossTerms
from raystill.store.records import TopKSignal
from raystill.store.signal_ids import fold_into_tail
from raystill.train.build import build_model
from raystill.train.output import ADAPTER_DIRECTORY
from raystill.train.settings import resolve_settings

CPU = torch.device("cpu")
IDS = torch.arange(24).unsqueeze(0)
# As a program of its own: an engine leaves threads behind.
VLLM_WITH_ADAPTER = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
import vllm
from vllm.lora.request import LoRARequest
request = json.load(open(sys.argv[1]))
engine = vllm.LLM(model=request["model"], dtype="float32", max_model_len=128, max_num_seqs=4,
                  enforce_eager=True, enable_prefix_caching=False, disable_log_stats=True, seed=0,
                  kv_cache_memory_bytes=64 << 20, enable_lora=True, max_lora_rank=8)
sampling = vllm.SamplingParams(temperature=0.0, max_tokens=12, detokenize=False, ignore_eos=True)
prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
found = {}
for name, lora in (("plain", None), ("adapted", LoRARequest("ours", 1, request["adapter"]))):
    outputs = engine.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    found[name] = [list(output.outputs[0].token_ids) for output in outputs]
json.dump(found, open(sys.argv[2], "w"))
"""


def described(base: Path, **keys: Any) -> dict[str, Any]:
    """A student that starts from `base`, with none of the fresh one's keys."""
    own = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "num_key_value_heads", "max_position_embeddings", "model_type")  # fmt: skip
    return {"base_model_name": str(base), "init": "base", **dict.fromkeys(own), **keys}


def train_base(world: Any, **student: Any) -> Path:
    base = world.config("base", training={"steps": 4}, student=student)
    world.train(base, "sft")
    found: Path = world.paths(base).model("sft")
    return found


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
    )  # fmt: skip
    return [int(token) for token in output[0, len(prompt) :]]


@pytest.mark.vllm
def test_vllm_serves_the_adapter_as_the_merged_model_writes(world: Any, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    lora = {"peft": {"lora": {"r": 8, "lora_alpha": 32}}, "learning_rate": 3e-2}
    # Heads of 32, which vLLM's attention on CPUs wants at least.
    base = train_base(world, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    config = world.config(student=described(base), train={"distillation": lora})
    world.train(config)
    paths = world.paths(config)
    prompts = [list(range(start, start + 9)) for start in (5, 40, 90)]
    request = {
        "model": str(paths.initial_model("distill").resolve()),
        "adapter": str((paths.stage_dir("distill") / ADAPTER_DIRECTORY).resolve()),
        "prompts": prompts,
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-c", VLLM_WITH_ADAPTER, tmp_path / "request.json", tmp_path / "answer.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "answer.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(paths.model("distill"))
    start = AutoModelForCausalLM.from_pretrained(paths.initial_model("distill"))
    assert found["adapted"] == [greedy(merged, prompt, 12) for prompt in prompts]
    assert found["plain"] == [greedy(start, prompt, 12) for prompt in prompts] != found["adapted"]


def test_an_adapter_from_trl_is_a_start_here(world: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig, PeftModel

    base = train_base(world)
    trainer = trl.SFTTrainer(
        model=str(base),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
            learning_rate=1e-2, report_to="none", bf16=False, logging_strategy="no", save_strategy="no",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"input_ids": list(range(20))}, {"input_ids": list(range(9, 40))}]),
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        processing_class=world.chat.tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    config = world.config("ours", student=described(base, adapter=str(tmp_path / "adapter")))
    settings = resolve_settings(config, "distill")
    ours = build_model(config, world.paths(config), settings, world.chat, CPU, []).eval()
    plain = AutoModelForCausalLM.from_pretrained(base)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain(input_ids=IDS).logits, expected, atol=1e-2)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_prefill_equals_decoding(world: Any, model_type: str) -> None:
    """All positions at once, and one token at a time beside a cache, are the same model."""
    config = world.config(student={"model_type": model_type})
    settings = resolve_settings(config, "distill")
    model = build_model(config, world.paths(config), settings, world.chat, CPU, []).eval()
    cache, steps = None, []
    with torch.no_grad():
        whole = model(input_ids=IDS).logits
        for place in range(IDS.shape[1]):
            output = model(input_ids=IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding_logit", [-1e4, 2.0])
def test_a_padded_teacher_teaches_as_its_sliced_logits_do(padding_logit: float) -> None:
    """152,064 rows over 151,936: without mass in the padding, as if it had been cut off; with mass there, as
    if that were one more way of saying "something else"."""
    teacher_rows, student_rows, rows, k = 152_064, 151_936, 3, 6
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(rows, teacher_rows, generator=generator, dtype=torch.float64)
    logits_NV[:, [7, 151_935, 1000]] += 9.0
    logits_NV[:, student_rows:] = padding_logit
    logits_NV[:, student_rows + 5] += 10.0 if padding_logit > 0 else 0.0
    logprobs_NV = logits_NV.log_softmax(-1)
    top = logprobs_NV.topk(k, dim=-1)
    rest_N = logprobs_NV.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    signal = TopKSignal(
        topk_ids_TK=top.indices.numpy().astype(np.int32),
        topk_logprobs_TK=top.values.numpy().astype(np.float16),
        sampled_logprob_T=np.zeros(rows, np.float32),
        tail_logprob_T=rest_N.numpy().astype(np.float32),
    )
    folded = fold_into_tail(signal, student_rows)
    hidden_ND = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    weight_VD = 0.1 * torch.randn(student_rows, 4, generator=generator, dtype=torch.float64)
    loss = chunked_loss(
        hidden_ND, weight_VD, torch.zeros(rows, dtype=torch.int64), LossTerms(ce_weight=0.0, kl_weight=1.0),
        teacher=TopKTeacher(
            torch.from_numpy(folded.topk_ids_TK.astype(np.int64)),
            torch.from_numpy(folded.topk_logprobs_TK.astype(np.float64)),
            torch.from_numpy(folded.tail_logprob_T.astype(np.float64)),
        ),
    )  # fmt: skip
    expected = 0.0
    student_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    for row in range(rows):
        kept = [int(i) for i in top.indices[row] if i < student_rows]
        p = torch.cat([logprobs_NV[row, kept].exp(), 1 - logprobs_NV[row, kept].exp().sum()[None]])
        q = torch.cat([student_NV[row, kept].exp(), 1 - student_NV[row, kept].exp().sum()[None]])
        expected += float((p * (p / q).log()).sum())
    assert float(loss.sum) == pytest.approx(expected, rel=2e-3)
    if padding_logit < 0:
        sliced = logits_NV[:, :student_rows].log_softmax(-1)
        torch.testing.assert_close(sliced, logprobs_NV[:, :student_rows])
        assert fold_into_tail(signal, student_rows) is signal
