"""What a training stage leaves behind: models that transformers and vLLM load as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from raystill.errors import ConfigError, EnvironmentFault
from raystill.run.publish import publish_directory
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import load_tokenizer, tokenizer_sha256
from raystill.train.student import Student
from raystill.train.students.base import load_causal_lm, merge_adapter
from raystill.train.students.quantize import dequantized_copy, is_quantized

ADAPTER_DIRECTORY = "adapter"


def save_initial_model(model: Any, chat: ChatFormat, directory: Path) -> None:
    """Publish the model before its first step; an existing one stays: a resumed run keeps its start.

    Raises ConfigError if its tokenizer would be another one once it is loaded from there.
    """
    if directory.exists():
        return
    if is_quantized(model):
        model = dequantized_copy(model)
    with publish_directory(directory) as temporary:
        _save(model, chat, temporary)
        _require_same_tokenizer(model, chat, temporary)


def save_final_model(
    student: Student, chat: ChatFormat, stage_dir: Path, directory: Path, start: Path
) -> None:
    """Publish the trained model at `directory`, with LoRA merged; the adapter alone beside it.

    Merging rewrites the weights in place, so this ends the student's training. Beside 4-bit weights the
    adapter is merged into the model at `start`, which holds the values they stand for.
    """
    model: Any = student.causal_lm
    if student.is_adapted:
        network: Any = student.network
        with publish_directory(stage_dir / ADAPTER_DIRECTORY) as temporary:
            network.save_pretrained(temporary)
        if is_quantized(model):
            model = merge_adapter(load_causal_lm(str(start), "sdpa"), str(stage_dir / ADAPTER_DIRECTORY))
            model.generation_config = student.causal_lm.generation_config
        else:
            model = network.merge_and_unload()
    with publish_directory(directory) as temporary:
        _save(model, chat, temporary)


def _require_same_tokenizer(model: Any, chat: ChatFormat, directory: Path) -> None:
    # transformers picks a tokenizer's class by the model type of config.json, and some classes replace the
    # normaliser and the splitting that tokenizer.json asks for. Better known before training than after.
    saved = load_tokenizer(str(directory.resolve()))
    if tokenizer_sha256(saved) != tokenizer_sha256(chat.tokenizer):
        raise ConfigError(
            f"a tokenizer of another family is loaded differently beside a {model.config.model_type} model",
            where="student.model_type",
            fix="choose the model_type of the tokenizer's own family, or set student.tokenizer",
        )


def copy_model(source: Path, target: Path, *, overwrite: bool) -> None:
    """Publish a copy of `source` at `target`. Raises what `validate_copy_target` raises."""
    validate_copy_target(target, overwrite=overwrite)
    with publish_directory(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def validate_copy_target(target: Path, *, overwrite: bool) -> None:
    """Raise EnvironmentFault if something is at `target` that a copy must not replace.

    A model directory may be replaced with `overwrite`; anything else never is.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    is_model = target.is_dir() and (target / "config.json").exists()
    if is_model and overwrite:
        return
    raise EnvironmentFault(
        "another model is where the copy should go" if is_model else "what is there is not a model",
        where=str(target),
        fix="choose another save_path or output_dir"
        + (", or set overwrite_output_dir: true" if is_model else ""),
    )


def _save(model: Any, chat: ChatFormat, directory: Path) -> None:
    model.save_pretrained(directory)
    chat.tokenizer.save_pretrained(directory)
