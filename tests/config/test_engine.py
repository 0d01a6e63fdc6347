"""What `auto` means for the engine."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from raystill.config import engine
from raystill.config.load import load_config


@pytest.mark.parametrize(
    ("overrides", "with_vllm", "without"),
    [
        (["teacher.open.model.name=x/y"], "vllm", "transformers"),
        ([], "vllm", "transformers"),
        (["teacher.closed.model.name=x"], "openai", "openai"),
        (["teacher.engine=fake"], "fake", "fake"),
        (["teacher.engine=transformers", "teacher.open.model.name=x/y"], "transformers", "transformers"),
    ],
)
def test_the_engine_of_this_machine(
    overrides: list[str], with_vllm: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([], overrides).config
    monkeypatch.setattr(engine, "find_spec", lambda name: ModuleSpec(name, None))
    assert engine.resolve_engine(config) == with_vllm
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert engine.resolve_engine(config) == without
