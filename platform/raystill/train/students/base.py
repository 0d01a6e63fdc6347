"""A student, or assistant, that starts from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from raystill.checkpoint.finite import require_finite_weights
from raystill.config.models import StudentSection
from raystill.config.student_init import ARCHITECTURE_KEYS
from raystill.errors import ConfigError, DataError, RemoteError
from raystill.text.tokenizer import is_local_name

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Keys of a fresh student's shape that a base decides; the context is apart, for it may be cut.
_DECIDED = (
    *ARCHITECTURE_KEYS,
    "num_key_value_heads",
    "head_dim",
    "model_type",
    "vocab_size",
    "tie_word_embeddings",
)


def load_causal_lm(name: str, attention: str, save_path: str | None = None, **options: Any) -> Any:
    """A checkpoint in float32; `options` go to transformers' from_pretrained.

    Raises DataError for pickle weights, unreadable files, and weights that are not finite, RemoteError for a
    hub id that can't be fetched.
    """
    from transformers import AutoModelForCausalLM

    source = str(Path(name).expanduser()) if is_local_name(name) else name
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            cache_dir=save_path,
            **options,
        )
    except (OSError, ValueError) as error:
        refuse_pickle(name)
        raise _unloadable(name, error) from error
    require_finite_weights(model.named_parameters(), name, "fetch or train the model again: it is broken")
    return model


def load_model_config(name: str, save_path: str | None = None, **options: Any) -> Any:
    """A checkpoint's transformers config; `options` go to from_pretrained. Raises as `load_causal_lm`."""
    from transformers import AutoConfig

    source = str(Path(name).expanduser()) if is_local_name(name) else name
    try:
        return AutoConfig.from_pretrained(source, cache_dir=save_path, **options)
    except (OSError, ValueError) as error:
        refuse_pickle(name)
        raise _unloadable(name, error) from error


def refuse_pickle(name: str) -> None:
    """Raise DataError for a local checkpoint that has weights as pickles only; a hub's is seen on loading."""
    if not is_local_name(name):
        return
    directory = Path(name).expanduser()
    pickles = [item.name for item in directory.glob("*") if item.suffix in _PICKLE_SUFFIXES]
    if pickles and not any(directory.glob("*.safetensors")):
        raise DataError(
            f"the model has only pickle weights ({pickles[0]}); loading those can run any code",
            where=name,
            fix="convert them to safetensors on a machine you can throw away, with save_pretrained",
        )


def load_base_student(student: StudentSection, attention: str) -> Any:
    """The student's base as it is. Raises ConfigError where a key asks for another shape than its own."""
    assert student.base_model_name is not None
    model = load_causal_lm(student.base_model_name, attention)
    refuse_other_architecture(student, model.config.get_text_config())
    limit_context(model.config.get_text_config(), student)
    return model


def limit_context(config: Any, student: StudentSection) -> None:
    """Cut the base's context to `student.max_position_embeddings`. Raises ConfigError for a longer one."""
    wanted, own = student.max_position_embeddings, int(getattr(config, "max_position_embeddings", 0))
    if wanted is None or not own:
        return
    if wanted > own:
        raise ConfigError(
            f"student.max_position_embeddings is {wanted}, and the base has learnt {own} positions",
            where="student.max_position_embeddings",
            fix=f"use at most {own}, or unset it",
        )
    config.max_position_embeddings = wanted


def rotary_base(config: Any) -> float | None:
    """The base of a checkpoint's rotary positions, where its config says one."""
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    return None if theta is None else float(theta)


def merge_adapter(model: Any, directory: str) -> Any:
    """`model` with a PEFT adapter merged into it. Raises DataError if the adapter isn't one, or of another
    model."""
    with _blaming_adapter(directory):
        return attach_adapter(model, directory).merge_and_unload()


def attach_adapter(model: Any, directory: str, **options: Any) -> Any:
    """`model` in a PEFT wrapper with the adapter that `directory` holds; `options` go to PEFT. Raises as
    `merge_adapter`."""
    from peft import PeftModel

    with _blaming_adapter(directory):
        return PeftModel.from_pretrained(model, Path(directory).expanduser(), **options)


@contextmanager
def _blaming_adapter(directory: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"the adapter can't be merged into the base: {first_line(error)}",
            where=str(Path(directory).expanduser()),
            fix="give the directory of a PEFT adapter (adapter_config.json and adapter_model.safetensors) "
            "that was trained on student.base_model_name",
        ) from error


def first_line(error: Exception) -> str:
    """The beginning of an error's text, for a message; two lines of it where the first only announces."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


def _unloadable(name: str, error: Exception) -> DataError | RemoteError:
    if not is_local_name(name):
        return RemoteError(
            f"the model can't be fetched: {first_line(error)}",
            where=name,
            fix="check the spelling and the network, or give the path of a local copy",
        )
    return DataError(
        f"the model can't be loaded: {first_line(error)}",
        where=name,
        fix="point it at a directory that save_pretrained wrote",
    )


def refuse_other_architecture(student: StudentSection, base: Any) -> None:
    """Raise ConfigError where a key asks for another shape than that of `base`, a text config."""
    own = {key: getattr(base, key, None) for key in _DECIDED} | {"rope_theta": rotary_base(base)}
    if own["head_dim"] is None:
        own["head_dim"] = base.hidden_size // base.num_attention_heads
    given = {key: getattr(student, key) for key in own}
    other = {
        key: f"{value}, the base has {own[key]}"
        for key, value in given.items()
        if value is not None and value != own[key]
    }
    if other:
        raise ConfigError(
            "the student is to start from a base of another shape: "
            + "; ".join(f"{key} is {text}" for key, text in other.items()),
            where=", ".join(f"student.{key}" for key in other),
            fix="unset these keys to train the base as it is, set student.init to shrink to cut the base to "
            "them, or to fresh for new weights",
        )
