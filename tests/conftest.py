"""Fixtures that several parts share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Tests share the cores: threads that spin at a barrier take them from whom they wait for.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no fault of the code: examples have no deadline and may be drawn slowly.
settings.register_profile("raystill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raystill")


def _load_builder(name: str) -> ModuleType:
    """Import a builder that lies beside this file; with importlib mode, tests are not on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_run_module() -> ModuleType:
    """`tests/small_run.py`: builds a run directory as it stands before evaluate."""
    return _load_builder("small_run")


@pytest.fixture(scope="session")
def build_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A factory of byte-level BPE tokenizers with ChatML turns; arguments make deliberate defects."""
    return _build_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound tokenizer, saved."""
    directory = tmp_path_factory.mktemp("tokenizer")
    _build_tokenizer().save_pretrained(str(directory))
    return directory


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _build_tokenizer(
    special_tokens: Sequence[str] = ("<pad>", "<|im_start|>", "<|im_end|>"),
    eos_token: str | None = "<|im_end|>",
    pad_token: str | None = "<pad>",
    bos_token: str | None = None,
    chat_template: str | None = CHATML,
    texts: Sequence[str] = ("What is two plus two? It is four.", "hello world, write the docstring of this"),
    vocab_size: int = 320,
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(list(texts) * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos_token, pad_token=pad_token, bos_token=bos_token
    )
    tokenizer.chat_template = chat_template
    return tokenizer
