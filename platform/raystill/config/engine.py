"""What `teacher.engine: auto` means on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from raystill.config.schema import Config

EngineName = Literal["vllm", "transformers", "openai", "fake"]


def resolve_engine(config: Config) -> EngineName:
    """The engine that `config` uses here; `auto` is openai for a closed teacher, vLLM where it is installed,
    else transformers. Looks for the package without importing it.
    """
    if config.teacher.engine != "auto":
        return config.teacher.engine
    if config.teacher.closed is not None:
        return "openai"
    return "transformers" if find_spec("vllm") is None else "vllm"
