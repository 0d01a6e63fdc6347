"""A sweep's space is checked when the file is loaded: keys, ranges and values, each with a repair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raystill.config.load import load_config
from raystill.errors import ConfigError

RATE = "train.distillation.learning_rate"


def load(tmp_path: Path, space: dict[str, Any], **more: Any) -> Any:
    values = {"train": {"distillation": {}}, "tune": {"space": space, **more}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_config([path])


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        (
            "train.distillation.learning_rte",
            {"uniform": [0, 1]},
            "did you mean train.distillation.learning_rate",
        ),
        ("losses.kd_temprature", {"choice": [1]}, "losses.kd_temperature"),
        ("train.distillation", {"choice": [1]}, "block of keys"),
        ("teacher.signals.num_logprobs", {"choice": [5]}, "no key of training"),
        ("training.num_workers", {"choice": [1, 2]}, "can't differ between trials"),
        (RATE, {"uniform": [1, 0.1]}, "is empty"),
        (RATE, {"loguniform": [0, 1]}, "no logarithm"),
        (RATE, {"choice": []}, "has no values"),
        (RATE, {"choice": [1e-3], "uniform": [0, 1]}, "exactly one"),
        (RATE, {"uniform": [-1.0, 1.0]}, "can't be -1"),
        ("train.distillation.peft.lora.r", {"uniform": [4, 8]}, "use randint"),
        ("train.distillation.peft.lora.lora_dropout", {"choice": [0.1, 1.5]}, "can't be 1.5"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path: Path, path: str, values: dict[str, Any], message: str) -> None:
    """I39."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {path: values})
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1 and "sweep.yaml" in caught.value.problems[0].where


def test_kinds_of_search_have_their_limits(tmp_path: Path) -> None:
    """I39."""
    for more, values in (
        ({"search": "grid"}, {"uniform": [0.1, 0.2]}),
        ({"search": "optuna"}, {"grid": [0.1]}),
        ({"scheduler": "pbt"}, {"grid": [0.1]}),
    ):
        with pytest.raises(ConfigError):
            load(tmp_path, {RATE: values}, **more)


def test_a_sound_space_loads_with_blocks_that_are_not_there_yet(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {
            RATE: {"loguniform": [1e-5, 1e-3]},
            "train.distillation.peft.lora.r": {"randint": [4, 32]},
            "train.distillation.peft.lora.target_modules": {"choice": [["q_proj"], "all-linear"]},
            "losses.divergence": {"choice": ["forward_kl", "reverse_kl"]},
        },
    )
    assert loaded.config.tune.metric == "eval/ce"


def test_keys_that_no_trial_would_look_at_are_refused(tmp_path: Path) -> None:
    """All trials would be alike."""
    hidden = {"student.hidden_size": {"choice": [32, 64]}}

    def write(train: dict[str, Any], space: dict[str, Any], **more: Any) -> Path:
        path = tmp_path / "sweep.yaml"
        values = {"train": train, "tune": {"space": space, **more}}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    both: dict[str, Any] = {"sft": {}, "distillation": {}}
    for space, stage in (
        ({"train.sft.learning_rate": {"uniform": [0.1, 0.2]}}, "distill"),
        ({RATE: {"uniform": [0.1, 0.2]}}, "sft"),
        ({"losses.ce_weight": {"uniform": [0.1, 0.2]}}, "sft"),
        (hidden, "distill"),
    ):
        with pytest.raises(ConfigError, match="changes nothing") as caught:
            load_config([write(both, space, stage=stage)])
        assert caught.value.problems[0].fix
    load_config([write({"sft": {}, "distillation": {"init": "student"}}, hidden)])
    load_config([write({"distillation": {}}, hidden)])


def test_a_sweep_needs_its_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.sft"):
        load(tmp_path, {RATE: {"uniform": [0.1, 0.2]}}, stage="sft")


def test_trials_may_have_several_workers_but_not_a_changing_number(tmp_path: Path) -> None:
    """I33."""

    def write(**more: Any) -> Path:
        values = {"train": {"distillation": {}}, "tune": {"space": {RATE: {"uniform": [0.1, 0.2]}}}} | more
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    load_config([write(training={"num_workers": 2})])
    with pytest.raises(ConfigError, match="don't come and go") as caught:
        load_config([write(training={"num_workers": [1, 2]})])
    assert "training.num_workers=1" in caught.value.problems[0].fix
    load_config([write(tune={"space": {RATE: {"uniform": [0.1, 0.2]}}, "resources": {"gpus": 0.5}})])
    with pytest.raises(ConfigError, match="can't share a GPU"):
        load_config([write(training={"num_workers": 2}, tune={"space": {RATE: {"uniform": [0.1, 0.2]}},
                                                              "resources": {"gpus": 0.5}})])  # fmt: skip
