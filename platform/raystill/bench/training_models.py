"""Models and rows of the training benchmarks: random weights and random tokens, the same for every side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raystill.store.records import TopKSignal
from raystill.train.examples import Example, ExampleSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ModelName = Literal["s35", "t60", "sV", "tV"]
LENGTH = 512
PROMPT_LENGTH = 128
BATCH_ROWS = 4
NUM_LOGPROBS = 64


@dataclass(frozen=True)
class Shape:
    """A Qwen2-style model with tied embeddings."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


SHAPES: dict[ModelName, Shape] = {
    "s35": Shape(32_000, 512, 1536, 6, 8, 4),
    "t60": Shape(32_000, 640, 1920, 8, 10, 5),
    "sV": Shape(151_936, 256, 704, 4, 4, 2),
    "tV": Shape(151_936, 256, 704, 6, 4, 2),
}


def build_model(name: ModelName) -> Any:
    """The transformers model in float32, with weights of a fixed seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = SHAPES[name]
    config = AutoConfig.for_model(
        "qwen2",
        **vars(shape),
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One word per id: peers ask for a tokenizer, and the rows are ids already."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def draw_lengths(num_rows: int) -> list[int]:
    """Skewed lengths from 32 to 512: batches of four in this order are about 0.6 full when padded."""
    drawn = np.random.default_rng(0).lognormal(5.3, 0.75, num_rows)
    return [int(length) for length in np.clip(drawn, 32, LENGTH)]


def draw_ids(length: int, vocab_size: int, row: int) -> list[int]:
    """Token ids of a row; 0 is padding and 1 the end."""
    ids: list[int] = np.random.default_rng([1, row]).integers(2, vocab_size, length).tolist()
    return ids


def make_sft_rows(num_rows: int, vocab_size: int) -> list[list[int]]:
    """Rows of skewed lengths; all of their tokens carry loss."""
    return [draw_ids(length, vocab_size, row) for row, length in enumerate(draw_lengths(num_rows))]


def make_kd_rows(num_rows: int, vocab_size: int) -> list[list[int]]:
    """Rows of full length; the last three quarters carry loss."""
    return [draw_ids(LENGTH, vocab_size, row) for row in range(num_rows)]


def make_examples(rows: list[list[int]], prompt_length: int, vocab_size: int, signal: bool) -> ExampleSet:
    """The rows as the product holds them, with top-64 logprobs of no particular teacher where `signal`."""
    examples = []
    for number, ids in enumerate(rows):
        own = _draw_signal(ids[prompt_length:], vocab_size, number) if signal else None
        examples.append(Example(np.array(ids, dtype=np.int32), prompt_length, own))
    return ExampleSet(examples)


def _draw_signal(targets: list[int], vocab_size: int, seed: int) -> TopKSignal:
    """Distinct ids at every position, the sampled token first, and logprobs with 2 % in the tail."""
    generator = np.random.default_rng([2, seed])
    count = len(targets)
    stride = vocab_size // NUM_LOGPROBS
    offsets_TK = np.arange(NUM_LOGPROBS) * stride + generator.integers(0, stride, (count, NUM_LOGPROBS))
    ids_TK = (np.array(targets)[:, None] + np.where(np.arange(NUM_LOGPROBS) == 0, 0, offsets_TK)) % vocab_size
    logits_TK = -np.sort(-generator.normal(0.0, 3.0, (count, NUM_LOGPROBS)), axis=1)
    logprobs_TK = logits_TK - np.log(np.exp(logits_TK).sum(axis=1, keepdims=True)) + np.log(0.98)
    return TopKSignal(
        topk_ids_TK=ids_TK.astype(np.int32),
        topk_logprobs_TK=logprobs_TK.astype(np.float16),
        sampled_logprob_T=logprobs_TK[:, 0].astype(np.float32),
        tail_logprob_T=np.full(count, np.log(0.02), dtype=np.float32),
    )
