"""Answers that nobody here generated: text in, an open teacher's tokens and distributions beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.precision import RELATIVE_ERROR
from raystill.store.reader import load_rows
from raystill.store.scorer import signal_identity
from raystill.store.store import load_store
from raystill.store.tier_codec import num_positions
from raystill.store.tier_reader import load_hidden, load_sampled
from raystill.store.tier_records import SampledSignal
from raystill.store.verify import verify_store
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.score_stage import SCORE_STAGE
from raystill.teacher.tier_work import scorer_rows
from raystill.testing.scripted_api import ScriptedApi
from raystill.text.chat import load_chat_format
from raystill.text.tokenizer import tokenizer_sha256

# Two engines' numbers that differ by a hair may be kept one step apart.
ONE_STEP = 2 * RELATIVE_ERROR

pytestmark = pytest.mark.ray
SavePrompts = Callable[..., RunPaths]


@pytest.fixture
def answered(
    local_ray: None, tmp_path: Path, teacher_dir: Path, save_prompt_table: SavePrompts
) -> tuple[Config, RunPaths]:
    """A run whose closed teacher has answered in text, with an open teacher beside it to score."""
    with ScriptedApi() as api:
        config = Config.model_validate(
            {
                "run": {"dir": str(tmp_path / "runs"), "name": "text"},
                "device": {"type": "cpu"},
                "teacher": {
                    "engine": "transformers",
                    "closed": {
                        "model": {"name": "scripted"},
                        "endpoint": {"base_url": api.base_url, "api_key_env": None},
                        "pipeline": {"max_new_tokens": 6},
                    },
                    "open": {"model": {"name": str(teacher_dir), "bfloat16": False}},
                    "signals": {"num_logprobs": 4},
                    "store": {"num_partitions": 2, "rows_per_part": 8},
                },
            }
        )
        paths = save_prompt_table(config, 20)
        execute(GENERATE_STAGE, config, paths)
    return config, paths


def test_text_is_scored_in_the_scorers_own_tokens(
    answered: tuple[Config, RunPaths], teacher_dir: Path
) -> None:
    config, paths = answered
    store = load_store(paths.store)
    assert all(len(row.completion_token_ids) == 0 for row in load_rows(store))
    counts = execute(SCORE_STAGE, config, paths).manifest.counts
    assert (counts["rows"], counts["scored"], counts["tokenised"]) == (20, 20, 20)
    chat = load_chat_format(str(teacher_dir))
    for row in load_rows(store, with_signal=True):
        expected = chat.training_example(json.loads(row.messages), row.completion).input_ids
        expected = expected if row.finish_reason == "stop" else expected[:-1]
        assert [*row.prompt_token_ids.tolist(), *row.completion_token_ids.tolist()] == expected
        assert row.signal is not None and row.signal.num_logprobs == 4
        assert len(row.signal.sampled_logprob_T) == len(row.completion_token_ids)
    assert all(len(row.completion_token_ids) == 0 for row in load_rows(store)), (
        "the answers stay as they were"
    )
    assert verify_store(paths.store).ok
    assert signal_identity(store).tokenizer_sha256 == tokenizer_sha256(chat.tokenizer)
    assert execute(SCORE_STAGE, config, paths, fresh=True).manifest.counts["rows"] == 0
    assert len(load_rows(store, with_signal=True, num_logprobs=2)) == 20


@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_text_gets_the_other_tiers_too(answered: tuple[Config, RunPaths], kind: str) -> None:
    config, paths = answered
    values = config.model_dump(mode="json")
    values["teacher"]["signals"] |= {"kind": kind, "num_draws": 5, "num_logprobs": 0}
    tiered = Config.model_validate(values)
    counts = execute(SCORE_STAGE, tiered, paths).manifest.counts
    assert (counts["rows"], counts["scored"], counts["tokenised"]) == (40, 40, 20)
    store = load_store(paths.store)
    rows = {row.key: row for row in load_rows(store, with_signal=True, num_logprobs=1)}
    signals = load_sampled(store, rows) if kind == "sampled" else load_hidden(store, rows)
    for key, signal in signals.items():
        assert num_positions(signal) == len(rows[key].completion_token_ids) > 0
        if isinstance(signal, SampledSignal):
            own = rows[key].signal
            assert own is not None
            np.testing.assert_allclose(
                signal.sampled_logprob_T, own.sampled_logprob_T, atol=2e-3, rtol=ONE_STEP
            )
    assert verify_store(paths.store).ok
    chosen = list(scorer_rows(store, 0, set(rows), own_tokens=False))
    assert chosen and all(row["completion_token_ids"] for row in chosen), "the probe has rows to compare on"
    assert execute(SCORE_STAGE, tiered, paths, fresh=True).manifest.counts["rows"] == 0
