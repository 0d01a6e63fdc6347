"""The probe: two engines score the same rows, and the manifest says how far they disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.probe import _compare
from raystill.teacher.score_stage import SCORE_STAGE

MakeConfig = Callable[..., Config]
SavePrompts = Callable[..., RunPaths]


def test_differences_are_of_shared_rows() -> None:
    own = {"a": np.array([-1.0, -2.0], np.float32), "b": np.array([-3.0], np.float32)}
    other = {"a": np.array([-1.0, -2.5], np.float32)}
    found = _compare(own, other, 2)
    assert (found["rows"], found["rows_left_out"], found["tokens"]) == (1, 1, 2)
    assert found["mean_abs"] == 0.25 and found["max_abs"] == 0.5 and 0.25 < found["p99_abs"] <= 0.5
    with pytest.raises(DataError, match="both engines"):
        _compare(own, {}, 2)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestOnOneRay:
    def probe(self, config: Config, paths: RunPaths) -> dict[str, Any]:
        execute(GENERATE_STAGE, config, paths)
        manifest = execute(SCORE_STAGE, config, paths).manifest
        assert manifest.config["teacher.signals.probe_rows"] == 6
        probe: dict[str, Any] = manifest.metrics["probe"]
        assert probe["rows"] == 6 and probe["rows_left_out"] == 0 and probe["tokens"] >= 6
        return probe

    def test_a_fake_teacher_is_not_the_model(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config(signals={"probe_rows": 6})
        probe = self.probe(config, save_prompt_table(config, 20))
        assert probe["engines"] == ["fake", "transformers"]
        assert probe["mean_abs"] > 0.5

    @pytest.mark.vllm
    def test_vllm_and_transformers_agree(
        self, make_config: MakeConfig, save_prompt_table: SavePrompts
    ) -> None:
        config = make_config("transformers", signals={"probe_rows": 6}, model_keys={"bfloat16": False})
        probe = self.probe(config, save_prompt_table(config, 12))
        assert probe["engines"] == ["transformers", "vllm"]
        assert probe["max_abs"] < 1e-3
