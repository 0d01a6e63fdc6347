"""Sources that can't do what the other keys ask for are refused at load, with both places."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.config.load import load_config
from raystill.config.signal_source import learns_from_assistant, resolve_kd_models, resolve_signal_source
from raystill.errors import ConfigError

BASE = """
teacher: {open: {model: {name: ./teacher}}}
student: {base_model_name: ./student}
train: {distillation: {}}
losses: {kl_weight: 1.0, ce_weight: 0.0}
"""
T = "train.distillation.teacher"
ONLINE = (f"{T}.source=online",)


def load(tmp_path: Path, *overrides: str) -> object:
    path = tmp_path / "config.yaml"
    path.write_text(BASE)
    return load_config([path], overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((f"{T}.num_logprobs=8",), ("num_logprobs", "store")),
        ((f"{T}.models=[{{name: teacher}}]",), ("models", "stored signals")),
        ((f"{T}.worker={{}}",), ("worker", "stored signals")),
        ((*ONLINE, f"{T}.worker={{}}", f"{T}.models=[{{name: student}}]"), ("worker", "first weights")),
        ((*ONLINE, f"{T}.worker={{}}", "losses.hidden={weight: 0.5}"), ("losses.hidden", "moves it out")),
        ((*ONLINE, f"{T}.worker={{num_gpus: 1}}", "device.type=cpu"), ("num_gpus", "device.type")),
        ((*ONLINE, f"{T}.worker={{}}", "training.num_workers=[1, 4]"), ("num_workers", "leaves")),
        ((*ONLINE, f"{T}.models=[{{name: student, weights: 4bit}}]"), ("models", "otherwise")),
        ((f"{T}.rollouts.share=0.5",), ("rollouts", "on_policy")),
        ((f"{T}.source=online", "losses.num_logprobs=4"), ("losses.num_logprobs", "view")),
        ((f"{T}.source=online", f"{T}.models=[{{name: assistant}}]"), ("assistant", "trains none")),
        ((f"{T}.source=online", "teacher.open=null"), ("open weights",)),
        ((f"{T}.source=on_policy", "losses.ce_weight=0.5"), ("CE term", "own samples")),
        ((f"{T}.source=on_policy", "losses.kl_weight=0", "losses.ce_weight=1"), ("judged",)),
        ((f"{T}.source=on_policy", f"{T}.rollouts.max_new_tokens=4096"), ("room",)),
        ((f"{T}.source=on_policy", f"{T}.rollouts.memory_gib=2.0"), ("memory_gib", "transformers")),
        (("losses.hidden={weight: 0.5}",), ("losses.hidden", "teacher in memory")),
        (("teacher.signals.num_logprobs=0",), ("no distributions",)),
    ],
)
def test_what_can_not_be_meant_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """I6, I30: a KD term without logprobs is k = 0."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides)
    for word in words:
        assert word in str(caught.value) or any(word in problem.what for problem in caught.value.problems)


@pytest.mark.parametrize(
    "overrides",
    [
        (f"{T}.source=online", "teacher.signals.num_logprobs=0", f"{T}.num_logprobs=8"),
        (f"{T}.source=online", "losses.hidden={weight: 0.5}"),
        (f"{T}.source=online", f"{T}.worker={{num_cpus: 4}}", f"{T}.models=[{{name: x/y, weights: 4bit}}]"),
        (f"{T}.source=on_policy", f"{T}.rollouts.share=0.5", f"{T}.rollouts.engine=vllm"),
    ],
)
def test_what_goes_together_loads(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    load(tmp_path, *overrides)


def test_the_student_of_a_trained_assistant_learns_from_it(tmp_path: Path) -> None:
    config = load(tmp_path).config  # type: ignore[attr-defined]
    assert resolve_signal_source(config) == "store"
    assert not learns_from_assistant(config)
    config = load(tmp_path, "assistant={model: {name: ./base}}", "train.sft={}").config  # type: ignore[attr-defined]
    assert resolve_signal_source(config) == "online"
    assert [model.name for model in resolve_kd_models(config)] == ["assistant"]
    assert learns_from_assistant(config)
