"""A trained model as a directory that transformers and vLLM load: merged weights, tokenizer, template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raystill.errors import DataError
from raystill.text.tokenizer import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_source(directory: Path, dtype: str) -> tuple[Any, Any]:
    """The trained model in the export's type, adapters merged into the base in float32, and its tokenizer.

    Raises DataError if the directory isn't a loadable model or its weights are not finite in `dtype`.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not directory.is_dir():
        raise DataError(
            "there is no model to export", where=str(directory), fix="run its training stage first"
        )
    try:
        if (directory / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            adapted = AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            model = adapted.merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True
            )
    except (OSError, ValueError) as error:
        raise DataError(
            f"the model can't be loaded: {error}",
            where=str(directory),
            fix="run its training stage with --fresh",
        ) from error
    model = model.to(DTYPES[dtype]).eval()
    _validate_finite(model, directory, dtype)
    return model, load_tokenizer(str(directory.resolve()))


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write weights (safetensors), configuration, generation configuration, tokenizer and chat template."""
    eos_ids = stop_token_ids(model, tokenizer)
    generation = model.generation_config
    generation.eos_token_id = eos_ids
    generation.pad_token_id = pad_token_id(tokenizer, eos_ids)
    generation.bos_token_id = tokenizer.bos_token_id
    # The recipe trains for greedy or plain sampling; stray decoding settings of a base model are not ours.
    generation.do_sample = False
    generation.temperature = generation.top_p = generation.top_k = None
    model.config.eos_token_id = eos_ids[0] if len(eos_ids) == 1 else eos_ids
    model.config.pad_token_id = generation.pad_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a completion, the tokenizer's EOS first. Raises DataError if there is none."""
    configured = model.generation_config.eos_token_id
    candidates = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    eos_ids = list(dict.fromkeys(int(token_id) for token_id in candidates if token_id is not None))
    if not eos_ids:
        raise DataError(
            "the model has no EOS token, so its completions would never end",
            fix="give the student a tokenizer with an eos_token",
        )
    return eos_ids


def pad_token_id(tokenizer: Any, eos_ids: list[int]) -> int:
    """The padding id: the tokenizer's own, else its EOS."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else eos_ids[0]


def _validate_finite(model: Any, directory: Path, dtype: str) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(
                f"{name} is not finite in {dtype}",
                where=str(directory),
                fix="choose another export.dtype; if it is float32 already, train again",
            )
