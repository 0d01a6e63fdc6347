"""A run directory as it stands before evaluate: real prompt table, store, manifests and tiny real models.

The teacher is a random two-layer Qwen2. Its greedy completions and distributions fill the store, and most
references are what it says, so it is "right" about them. The distilled model is the teacher itself (it must
close the whole gap), the SFT model a noisy copy, the untrained one has other random weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from raystill.config.schema import Config
from raystill.run.manifest import Manifest, fingerprint_of, save_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.requests import Request, save_requests
from raystill.store.store import open_store
from raystill.store.writer import PartWriter
from raystill.text.chat import ChatFormat
from raystill.text.prompt_row import Prompt, TaskKind
from raystill.text.prompt_table import save_prompts
from raystill.text.tokenizer import chat_template_sha256, load_tokenizer, tokenizer_sha256

NUM_LOGPROBS = 8
VOCAB_SIZE = 264
MAX_NEW_TOKENS = 12
EOS = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class SmallRun:
    """A configuration, its run directory, and the held-out prompts."""

    config: Config
    paths: RunPaths
    prompts: list[Prompt]
    rows: list[TeacherRow]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level with no merges: 256 bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(seed: int, vocab_size: int = VOCAB_SIZE) -> Any:
    """A random model whose distributions are neither flat nor one-hot."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.25,
    )
    return AutoModelForCausalLM.from_config(config).float().eval()


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model directory as training stages do."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@torch.inference_mode()
def answer_greedily(model: Any, prompt_ids: list[int], eos_id: int) -> tuple[list[int], TopKSignal]:
    """The model's greedy completion and its top-k signal, one token at a time and with no cache."""
    ids, completion = list(prompt_ids), []
    columns: list[tuple[Any, Any, float, float]] = []
    while len(completion) < MAX_NEW_TOKENS and (not completion or completion[-1] != eos_id):
        logprobs_V = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        top = logprobs_V.topk(NUM_LOGPROBS)
        rest_V = logprobs_V.clone()
        rest_V[top.indices] = float("-inf")
        token_id = int(top.indices[0])
        columns.append(
            (top.indices.numpy(), top.values.numpy(), float(top.values[0]), float(rest_V.logsumexp(0)))
        )
        completion.append(token_id)
        ids.append(token_id)
    ids_TK, logprobs_TK, sampled_T, tail_T = zip(*columns, strict=True)
    return completion, TopKSignal(
        np.stack(ids_TK).astype(np.int32),
        np.stack(logprobs_TK).astype(np.float16),
        np.asarray(sampled_T, np.float32),
        np.asarray(tail_T, np.float32),
    )


def build_config(root: Path, teacher: Path, **sections: Any) -> Config:
    """SFT then distillation of a student from one small teacher."""
    values: dict[str, Any] = {
        "run": {"name": "small", "dir": str(root)},
        "teacher": {
            "base": {"cut_off": "train"},  # random weights seldom end an answer
            "open": {
                "model": {"name": str(teacher)},
                "pipeline": {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False},
            },
            "signals": {"num_logprobs": NUM_LOGPROBS},
            "vllm": {"kv_cache_gib": 0.25},
        },
        "train": {"sft": {}, "distillation": {}},
        "export": {"verify_prompts": 0},
        **sections,
    }
    return Config.model_validate(values)


def build_small_run(root: Path, *, num_prompts: int = 24, **sections: Any) -> SmallRun:
    """Build everything below `root`; `sections` replace whole top-level sections of the configuration."""
    teacher_dir = root / "teacher"
    teacher = build_model(1)
    save_model(teacher, build_tokenizer(), teacher_dir)
    # Loaded back, because transformers chooses the tokenizer's class by the model's type.
    tokenizer = load_tokenizer(str(teacher_dir))
    chat = ChatFormat(tokenizer)
    config = build_config(root / "runs", teacher_dir, **sections)
    paths = RunPaths.from_config(config)
    prompts, rows = [], []
    identity = StoreIdentity(
        teacher=str(teacher_dir),
        engine="transformers",
        dtype="float32",
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        chat_template_sha256=chat_template_sha256(tokenizer) or "",
        num_logprobs=NUM_LOGPROBS,
    )
    for index in range(num_prompts):
        prompt, row = _build_pair(index, chat, teacher, identity)
        prompts.append(prompt)
        rows.append(row)
    save_prompts(paths.prompt_table, prompts)
    _fill_store(paths, identity, rows)
    save_requests(paths.requests, [Request(row.key, row.prompt_id, row.split) for row in rows])
    _save_models(paths, teacher, tokenizer)
    for stage in ("prepare", "generate", "score", "sft", "distill"):
        _complete(paths, stage, num_prompts)
    return SmallRun(config, paths, prompts, rows)


def _build_pair(
    index: int, chat: ChatFormat, teacher: Any, identity: StoreIdentity
) -> tuple[Prompt, TeacherRow]:
    task: TaskKind = ("exact", "tool_call", "text")[index % 3]
    messages = [{"role": "user", "content": f"Task {index}: what is {index} + {index * 7 % 5}?"}]
    prompt_ids = chat.render_prompt_ids(messages)
    completion_ids, signal = answer_greedily(teacher, prompt_ids, chat.eos_token_ids[0])
    completion = chat.decode(completion_ids)
    reference = {
        "exact": completion if index % 12 else "something else",
        "tool_call": '{"name": "add", "arguments": {"left": 1, "right": 2}}',
        "text": None,
    }[task]
    key = request_key(identity, prompt_ids, {"temperature": 0}, seed=index)
    prompt_id = f"p{index:03d}"
    row = TeacherRow(
        key=key,
        prompt_id=prompt_id,
        split="eval",
        source="small",
        messages=json.dumps(messages),
        prompt_token_ids=np.asarray(prompt_ids, np.int32),
        completion=completion,
        completion_token_ids=np.asarray(completion_ids, np.int32),
        finish_reason="stop" if completion_ids[-1] in chat.eos_token_ids else "length",
        flags=(),
        teacher_id=identity.teacher_id,
        sample_index=0,
        seconds=0.01,
        signal=signal,
    )
    return Prompt(prompt_id, "small", "eval", messages, task, reference, len(prompt_ids)), row


def _fill_store(paths: RunPaths, identity: StoreIdentity, rows: list[TeacherRow]) -> None:
    store = open_store(paths.store, identity, 2)
    with PartWriter(store) as writer:
        for partition in range(store.num_partitions):
            members = [row for row in rows if partition_of(row.key, store.num_partitions) == partition]
            if members:
                writer.commit_rows(partition, members)


def _save_models(paths: RunPaths, teacher: Any, tokenizer: Any) -> None:
    save_model(teacher, tokenizer, paths.model("distill"))
    noisy = build_model(1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.002 * torch.randn(parameter.shape, generator=generator))
    save_model(noisy, tokenizer, paths.model("sft"))
    for stage in ("sft", "distill"):
        save_model(build_model(2), tokenizer, paths.initial_model(stage))


def _complete(paths: RunPaths, stage: StageName, num_rows: int) -> None:
    directory = paths.stage_dir(stage)
    directory.mkdir(parents=True, exist_ok=True)
    save_manifest(
        directory,
        Manifest(
            stage=stage,
            fingerprint=fingerprint_of(stage),
            config={},
            inputs={},
            counts={"rows": num_rows},
            seconds=1.5,
        ),
    )
