"""Draws and hidden states from the transformers engine: unbiased, repeatable, aligned; the score stage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raystill.config.load import load_config
from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.reader import load_rows
from raystill.store.store import load_store
from raystill.store.tier_reader import load_hidden, load_sampled
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.errors import EngineRowError
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.teacher.preflight import preflight
from raystill.teacher.score_stage import SCORE_STAGE
from raystill.teacher.tier_capture import TierRequest, capture_tier

PROMPT = np.array([5, 9, 40, 7], np.int32)
COMPLETION = np.array([11, 12, 200, 13, 2], np.int32)
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def model(teacher_dir: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()
    with torch.no_grad():  # the random head is nearly certain: flattened, so that there is a tail
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight * 0.2)
    return loaded


def capture(model: Any, kind: TierKind, num_draws: int = 50, key: str = "ab" * 16) -> Any:
    return capture_tier(model, TierRequest(key, PROMPT, COMPLETION, kind, num_draws))


def dense(model: Any) -> np.ndarray:
    """Probabilities, T x V, of a plain forward pass."""
    ids = torch.from_numpy(np.concatenate([PROMPT, COMPLETION]).astype(np.int64))[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1]
    return torch.softmax(logits.double(), -1).numpy()


def estimate(signal: SampledSignal, vocab_size: int) -> np.ndarray:
    """counts / num_draws, T x V."""
    positions = np.repeat(np.arange(len(signal.num_unique_T)), signal.num_unique_T)
    found = np.zeros((len(signal.num_unique_T), vocab_size))
    found[positions, signal.draw_ids_E] = signal.draw_counts_E / signal.num_draws
    return found


def test_the_mean_over_draws_is_the_dense_distribution(model: Any) -> None:
    probabilities = dense(model)
    runs, draws = 200, 50
    total = sum(
        estimate(capture(model, "sampled", draws, f"{number:032x}"), probabilities.shape[1])
        for number in range(runs)
    )
    sigma = np.sqrt(probabilities * (1 - probabilities) / (runs * draws))
    z = np.abs(total / runs - probabilities) / np.maximum(sigma, 1e-12)
    likely = probabilities * runs * draws > 20  # where a normal approximation holds
    assert likely.sum() > 50
    # Three sigma hold for 99.7 % of the entries, and no entry is far off.
    assert (z[likely] < 3).mean() > 0.985
    assert z[likely].max() < 5
    # The tail as a whole is unbiased too, which a top k is not.
    tail = (total / runs)[:, :][~likely].sum() - probabilities[~likely].sum()
    assert abs(tail) < 3 * np.sqrt(probabilities[~likely].sum() / (runs * draws)) + 1e-9


def test_draws_depend_on_the_key_alone(model: Any) -> None:
    first, again, other = (capture(model, "sampled", 50, key) for key in ("0" * 32, "0" * 32, "1" * 32))
    assert first.draw_ids_E.tobytes() == again.draw_ids_E.tobytes()
    assert first.draw_counts_E.tobytes() == again.draw_counts_E.tobytes()
    assert first.draw_ids_E.tobytes() != other.draw_ids_E.tobytes()
    wanted = np.log(dense(model)[np.arange(len(COMPLETION)), COMPLETION])
    np.testing.assert_allclose(first.sampled_logprob_T, wanted, atol=1e-4)


def test_the_head_turns_hidden_states_into_the_distributions(model: Any) -> None:
    signal = capture(model, "hidden")
    assert isinstance(signal, HiddenSignal)
    assert signal.hidden_TD.shape == (len(COMPLETION), model.config.hidden_size)
    assert signal.hidden_TD.dtype == np.float16
    logits = torch.from_numpy(signal.hidden_TD).float() @ model.get_output_embeddings().weight.T
    np.testing.assert_allclose(torch.softmax(logits.double(), -1).detach().numpy(), dense(model), atol=0.01)


def test_rows_that_do_not_fit_are_refused(make_config: MakeConfig) -> None:
    config = make_config("transformers")
    engine: Any = build_engine(
        EngineBlueprint(config, preflight(config, "transformers"), (2,), 0, 0, scoring=True)
    )
    for prompt, completion in ((0, 5), (100, 100)):
        ids = [np.full(number, 9, np.int32) for number in (prompt, completion)]
        with pytest.raises(EngineRowError, match="too_long"):
            asyncio.run(engine.capture(TierRequest("0" * 32, *ids, "hidden", 1)))
    engine.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_score_captures_the_tier_and_resumes(
    make_config: MakeConfig, save_prompt_table: Callable[..., RunPaths], kind: TierKind
) -> None:
    config = make_config("transformers", signals={"kind": kind, "num_draws": 30})
    paths = save_prompt_table(config, 16)
    execute(GENERATE_STAGE, config, paths)
    store = load_store(paths.store)
    assert all(row.signal is None for row in load_rows(store))
    assert execute(SCORE_STAGE, config, paths).manifest.counts["scored"] == 16
    keys = {row.key: len(row.completion_token_ids) for row in load_rows(store)}
    if kind == "sampled":
        sampled = load_sampled(store, keys, 30)
        assert {key: len(signal.num_unique_T) for key, signal in sampled.items()} == keys
    else:
        hidden = load_hidden(store, keys)
        assert {key: len(signal.hidden_TD) for key, signal in hidden.items()} == keys
    (paths.stage_dir("score") / "manifest.json").unlink()
    assert execute(SCORE_STAGE, config, paths).manifest.counts["scored"] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["teacher.engine=vllm"], "top k only"),
        (["teacher.engine=fake"], "top k only"),
        (["teacher.signals.capture=generation"], "only a top k comes with the text"),
    ],
)
def test_engines_that_cannot_are_refused_at_load(tmp_path: Path, settings: list[str], said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "teacher: {open: {model: {name: org/model}}, signals: {kind: sampled}}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=said):
        load_config([path], settings)
