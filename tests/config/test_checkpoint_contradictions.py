"""keep_best without a measurement at the saved steps is refused, naming both keys."""

from __future__ import annotations

import pytest

from raystill.config.checkpoint_contradictions import find_checkpoint_contradictions
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config


def problems(cleanup: dict[str, object], strategy: str) -> list[str]:
    config = Config.model_validate(
        {
            "teacher": {"open": {"model": {"name": "teacher"}}},
            "training": {"checkpoint_cleanup": cleanup},
            "train": {"sft": {"eval_strategy": strategy}},
        }
    )
    return [problem.what for problem in find_checkpoint_contradictions(LoadedConfig(config))]


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_the_best_need_a_measurement_at_every_save(strategy: str) -> None:
    (what,) = problems({"keep_best": 1}, strategy)
    assert "keep_best" in what and "train.sft.eval_strategy" in what


def test_what_is_measured_anyway_is_fine() -> None:
    assert problems({"keep_best": 1}, "steps") == []
    assert problems({"keep_best": 0}, "no") == []
    assert problems({"keep_best": 1, "metric": "train/loss"}, "no") == []
