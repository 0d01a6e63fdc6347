"""How many engines a job may use."""

from __future__ import annotations

from raystill.config.teacher import VllmSection


def engine_range(vllm: VllmSection) -> tuple[int, int]:
    """The least and the most engines of `teacher.vllm.num_engines`; equal where it is one number."""
    engines = vllm.num_engines
    return (engines, engines) if isinstance(engines, int) else (engines[0], engines[1])
