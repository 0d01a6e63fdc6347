"""A tiny world to train in: a byte-level tokenizer, a real store with real signals, and a config for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.store.identity import StoreIdentity, partition_of
from raystill.store.reader import iter_tables
from raystill.store.records import TeacherRow, TopKSignal
from raystill.store.requests import Request, save_requests
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.writer import PartWriter
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import chat_template_sha256, tokenizer_sha256
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import TrainStageName
from raystill.train.worker import train_worker

K = 5
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class SilentReporter:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.steps.append(step)


def make_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*extra, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_signal(
    completion_ids: list[int], vocab_size: int, generator: np.random.Generator, k: int = K
) -> TopKSignal:
    """A teacher that is fairly sure of the right token, and of nothing else."""
    logits_TV = generator.normal(size=(len(completion_ids), vocab_size))
    logits_TV[np.arange(len(completion_ids)), completion_ids] += 6.0
    logprobs_TV = torch.log_softmax(torch.from_numpy(logits_TV), -1)
    top = logprobs_TV.topk(k, dim=-1)
    rest_TV = logprobs_TV.scatter(1, top.indices, -torch.inf)
    sampled_T = logprobs_TV.gather(1, torch.tensor(completion_ids).unsqueeze(-1)).squeeze(-1)
    return TopKSignal(
        topk_ids_TK=top.indices.numpy().astype(np.int32),
        topk_logprobs_TK=top.values.numpy().astype(np.float16),
        sampled_logprob_T=sampled_T.numpy().astype(np.float32),
        tail_logprob_T=torch.logsumexp(rest_TV, -1).numpy().astype(np.float32),
    )


def make_rows(chat: ChatFormat, count: int, *, with_signal: bool = True) -> list[TeacherRow]:
    """`count` distinct rows: copy a word as often as the prompt says."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        word, times = "abcdefgh"[number % 8] * (1 + number % 3), 1 + number % 5
        messages = [{"role": "user", "content": f"{number}: {word} x {times}"}]
        completion = " ".join([word] * times)
        completion_ids = [*chat.encode_completion(completion), chat.turn_end_id]
        rows.append(
            TeacherRow(
                key=hashlib.sha256(str(number).encode()).hexdigest()[:32],
                prompt_id=f"p{number}",
                split="eval" if number % 11 == 10 else "train",
                source="test",
                messages=json.dumps(messages),
                prompt_token_ids=np.array(chat.render_prompt_ids(messages), dtype=np.int32),
                completion=completion,
                completion_token_ids=np.array(completion_ids, dtype=np.int32),
                finish_reason="stop",
                flags=(),
                teacher_id="tiny",
                sample_index=0,
                seconds=0.1,
                signal=make_signal(completion_ids, len(chat.tokenizer), generator) if with_signal else None,
            )
        )
    return rows


def write_store(path: Path, chat: ChatFormat, rows: list[TeacherRow]) -> TeacherStore:
    identity = StoreIdentity(
        teacher="tiny",
        engine="fake",
        dtype="float32",
        tokenizer_sha256=tokenizer_sha256(chat.tokenizer),
        chat_template_sha256=chat_template_sha256(chat.tokenizer) or "",
        num_logprobs=K,
    )
    store = open_store(path, identity, num_partitions=2)
    with PartWriter(store) as writer:
        for partition in range(2):
            part = [row for row in rows if partition_of(row.key, 2) == partition]
            if part:
                writer.commit_rows(partition, part)
    return store


@dataclass
class World:
    """Builds configs and runs the loop in this process, without Ray."""

    root: Path
    tokenizer: Path
    chat: ChatFormat

    def config(self, name: str = "run", **sections: Any) -> Config:
        """A config for the tiny student; `sections` replace or extend the defaults, section by section."""
        values: dict[str, Any] = {
            "run": {"name": name, "dir": str(self.root)},
            "device": {"type": "cpu"},
            "teacher": {
                "open": {"model": {"name": str(self.tokenizer)}},
                "signals": {"num_logprobs": K},
                "store": {"path": str(self.root / "store")},
            },
            "student": {
                "model_type": "llama",  # loads the test tokenizer as it is; qwen2 would replace it
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
            },
            "training": {
                "steps": 6,
                "save_every": 2,
                "log_every": 2,
                "max_seq_len": 128,
                "cpus_per_worker": 1,
                "checkpoint_cleanup": {"min_free_space_gb": 0.0},
            },
            "train": {
                "sft": {"per_device_train_batch_size": 8, "learning_rate": 3e-3},
                "distillation": {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "init": "student"},
            },
        }
        return Config.model_validate(_merge(values, sections))

    def paths(self, config: Config) -> RunPaths:
        return RunPaths.from_config(config)

    def job(self, config: Config, stage: TrainStageName = "distill") -> TrainJob:
        self.list_requests(self.paths(config))
        return TrainJob(config, self.paths(config), stage, "cpu", 1)

    def list_requests(self, paths: RunPaths) -> None:
        """Every row of the store belongs to the run, on the side that the row says."""
        if not paths.store.exists():
            return
        columns = ("key", "prompt_id", "split")
        tables = iter_tables(load_store(paths.store), columns=columns)
        save_requests(paths.requests, [Request(**row) for table in tables for row in table.to_pylist()])

    def train(self, config: Config, stage: TrainStageName = "distill") -> dict[str, Any]:
        """Run the loop to its end; returns the summary."""
        return train_worker(self.job(config, stage), WorkerGroup(), SilentReporter())

    def weights(self, config: Config, stage: TrainStageName = "distill") -> bytes:
        """The bytes of the final model."""
        return (self.paths(config).model(stage) / "model.safetensors").read_bytes()

    def metrics(self, config: Config, stage: TrainStageName = "distill") -> list[dict[str, Any]]:
        lines = self.paths(config).training_metrics(stage).read_text().splitlines()
        return [json.loads(line) for line in lines]


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def chat(tokenizer_dir: Path) -> ChatFormat:
    from raystill.text.chat import load_chat_format

    return load_chat_format(str(tokenizer_dir))


@pytest.fixture(scope="session")
def rows(chat: ChatFormat) -> list[TeacherRow]:
    return make_rows(chat, 60)


@pytest.fixture
def empty_world(tmp_path: Path, tokenizer_dir: Path, chat: ChatFormat) -> World:
    """A world without a store."""
    return World(tmp_path, tokenizer_dir, chat)


@pytest.fixture
def world(empty_world: World, rows: list[TeacherRow]) -> World:
    """A world with a store of 60 rows."""
    write_store(empty_world.root / "store", empty_world.chat, rows)
    return empty_world


@pytest.fixture(scope="session")
def store_writer() -> Callable[[Path, ChatFormat, list[TeacherRow]], TeacherStore]:
    return write_store


@pytest.fixture(scope="session")
def tokenizer_maker() -> Callable[..., Any]:
    return make_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
