"""What is refused before an engine starts (I34, missing packages, impossible settings)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raystill.config.schema import Config
from raystill.errors import ConfigError, EnvironmentFault
from raystill.teacher.device import resolve_dtype
from raystill.teacher.preflight import preflight

MakeConfig = Callable[..., Config]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device(make_config: MakeConfig) -> None:
    """I34."""
    with pytest.raises(EnvironmentFault, match="CUDA device") as caught:
        preflight(make_config("transformers", device={"type": "cuda"}), "transformers")
    assert "device.type" in caught.value.problems[0].where
    assert "auto" in caught.value.problems[0].fix


def test_vllm_not_installed(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """I34."""
    monkeypatch.setattr("raystill.teacher.preflight.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="not installed") as caught:
        preflight(make_config("vllm"), "vllm")
    assert "transformers" in caught.value.problems[0].fix


def test_more_context_than_the_model_has(make_config: MakeConfig) -> None:
    """I21."""
    with pytest.raises(ConfigError, match="max_model_len"):
        preflight(make_config(vllm={"max_model_len": 4096}), "fake")


def test_more_logprobs_than_tokens(make_config: MakeConfig, teacher_dir: object) -> None:
    """I28."""
    config = make_config(signals={"num_logprobs": 256})
    assert preflight(config, "fake").files.vocab_size == 300
    small = config.model_copy(deep=True)
    object.__setattr__(small.teacher.signals, "num_logprobs", 301)
    with pytest.raises(ConfigError, match="vocabulary"):
        preflight(small, "fake")


def test_no_open_teacher() -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(Config(), "fake")
    assert caught.value.problems[0].where == "teacher.open"


def test_small_models_run_in_float32_on_a_cpu(make_config: MakeConfig) -> None:
    config = make_config()
    assert resolve_dtype(config, "cpu", 10**6) == "float32"
    assert resolve_dtype(config, "cpu", 10**10) == "bfloat16"
    assert resolve_dtype(config, "cuda", 10**6) == "bfloat16"
    exact = make_config(model_keys={"bfloat16": False})
    assert resolve_dtype(exact, "cuda", 10**10) == "float32"
