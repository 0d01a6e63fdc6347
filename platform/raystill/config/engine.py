"""What `teacher.engine: auto` means on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from raystill.config.schema import Config

EngineName = Literal["vllm", "transformers", "openai", "fake"]


def resolve_engine(config: Config) -> EngineName:
    """The engine that answers prompts here: openai for a closed teacher, else `resolve_open_engine`."""
    return "openai" if config.teacher.closed is not None else resolve_open_engine(config)


def resolve_open_engine(config: Config) -> EngineName:
    """The engine that runs `teacher.open` here, to answer or, beside a closed teacher, to score.

    `auto` is vLLM where it is installed, else transformers. Looks for the package without importing it.
    """
    engine = config.teacher.engine
    if engine == "auto" or engine == "openai":
        return "transformers" if find_spec("vllm") is None else "vllm"
    return engine
