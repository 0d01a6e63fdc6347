"""Which models are compared, and how a checkpoint is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raystill.config.schema import Config
from raystill.config.section import Section
from raystill.errors import DataError, EnvironmentFault
from raystill.evaluate.results import RowKey
from raystill.run.paths import RunPaths, StageName

_DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Contestant:
    """One row of the gap table that is computed here, and how its completions are made."""

    key: RowKey
    label: str
    directory: Path
    max_new_tokens: int
    padding_side: Literal["left", "right"] = "left"
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory. `context` is the longest sequence in tokens; shared `parameters` count once."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    pad_id: int
    context: int
    parameters: int


def training_stages(config: Config) -> tuple[StageName, ...]:
    """The training stages that `config` runs, in order."""
    stages: list[StageName] = []
    if config.train.sft is not None:
        stages.append("sft")
    if config.train.distillation is not None:
        stages.append("distill")
    return tuple(stages)


def list_contestants(config: Config, paths: RunPaths) -> list[Contestant]:
    """The models to compare with the teacher: untrained, after SFT, after distillation.

    Where an assistant stands between teacher and student, SFT trains the assistant, so the untrained student
    is what distillation started from.
    """
    stages = training_stages(config)
    longest = max_new_tokens(config)
    found = []
    if stages:
        first = "distill" if config.assistant is not None and "distill" in stages else stages[0]
        found.append(Contestant("untrained", "Untrained student", paths.initial_model(first), longest))
    if "sft" in stages:
        found.append(_sft_contestant(config, paths.model("sft"), longest))
    if "distill" in stages:
        label = _label(config.train.distillation, "run_name", "Student after KD")
        found.append(Contestant("distill", label, paths.model("distill"), longest))
    return found


def max_new_tokens(config: Config) -> int:
    """The longest completion in evaluation: its own key, else the teacher's."""
    if config.evaluation.max_new_tokens is not None:
        return config.evaluation.max_new_tokens
    return config.teacher.open.pipeline.max_new_tokens if config.teacher.open else _DEFAULT_MAX_NEW_TOKENS


def load_model(directory: Path, device: str) -> LoadedModel:
    """Load a checkpoint for measuring: float32 on a CPU, its own type on a GPU.

    Raises DataError if the directory isn't a loadable model, EnvironmentFault if a GPU is wanted and absent.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from raystill.text.tokenizer import load_tokenizer

    disable_progress_bar()
    where = resolve_device(device)
    if not directory.is_dir():
        raise DataError("there is no model", where=str(directory), fix="run its training stage with --fresh")
    tokenizer: Any = load_tokenizer(str(directory.resolve()))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32 if where == "cpu" else "auto", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"the model can't be loaded: {error}",
            where=str(directory),
            fix="run its training stage with --fresh",
        ) from error
    model = model.to(where).eval()
    eos_ids = _eos_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=int(pad_id) if pad_id is not None else min(eos_ids, default=0),
        context=int(model.config.get_text_config().max_position_embeddings),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def resolve_device(device: str) -> str:
    """`cpu` or `cuda` for `device.type`. Raises EnvironmentFault if CUDA is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "there is no CUDA device", where="device.type", fix="set device.type to auto or cpu"
        )
    return "cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def count_stored_parameters(directory: Path) -> int | None:
    """Parameters in a directory of safetensors, from the file headers alone; None where there are none."""
    from safetensors import safe_open

    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(str(path), framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total or None


def _sft_contestant(config: Config, directory: Path, longest: int) -> Contestant:
    assistant = config.assistant
    if assistant is None:
        label = _label(config.train.sft, "model_name", "Student after SFT")
        return Contestant("sft", label, directory, longest)
    return Contestant(
        "sft",
        _label(config.train.sft, "model_name", "Assistant after SFT"),
        directory,
        config.evaluation.max_new_tokens or assistant.inference.max_new_tokens,
        assistant.tokenizer.padding_side,
        assistant.tokenizer.skip_special_tokens,
    )


def _label(section: Section | None, key: str, fallback: str) -> str:
    """The name that the configuration gives to a model, where it gives one."""
    is_given = section is not None and key in section.model_fields_set
    return str(getattr(section, key)) if is_given else fallback


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(token_id) for token_id in ids if token_id is not None)
