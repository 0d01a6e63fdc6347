"""What the fake engine does besides answering; its answers are tested through the stages that use it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from raystill.config.schema import Config
from raystill.teacher.engine import GenerationRequest
from raystill.teacher.fake_engine import ASKED_VARIABLE, FakeEngine
from raystill.teacher.sampling import sampling_of


def test_engines_write_down_what_they_are_asked_for(
    make_config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()  # type: ignore[operator]
    assert isinstance(config, Config)
    monkeypatch.setenv(ASKED_VARIABLE, str(tmp_path / "asked.txt"))
    prompt = np.arange(5, dtype=np.int32)
    for engine in (FakeEngine(300, 64, (2,)), FakeEngine(300, 64, (2,))):
        for key in ("0" * 32, "1" * 32):
            request = GenerationRequest(
                key=key,
                prompt_token_ids=prompt,
                sampling=sampling_of(config, "train"),
                seed=0,
                num_logprobs=0,
            )
            asyncio.run(engine.generate(request))
    assert (tmp_path / "asked.txt").read_text().split() == 2 * ["0" * 32, "1" * 32]
