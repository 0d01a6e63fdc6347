"""The transformers and fake engines: positions, EOS, limits, seeds, a plain forward pass."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError
from raystill.store.precision import RELATIVE_ERROR
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.engine import Generation, GenerationRequest, Sampling, ScoreRequest, TeacherEngine
from raystill.teacher.errors import EngineRowError
from raystill.teacher.preflight import preflight

# Two engines' numbers that differ by a hair may be kept one step apart.
ONE_STEP = 2 * RELATIVE_ERROR

EOS = 2
K = 8
MakeConfig = Callable[..., Config]


def make_requests(
    number: int = 12, temperature: float = 0.9, max_new_tokens: int = 12
) -> list[GenerationRequest]:
    rng = np.random.default_rng(5)
    return [
        GenerationRequest(
            key=f"row{index}",
            prompt_token_ids=rng.integers(3, 300, rng.integers(2, 30)).astype(np.int32),
            sampling=Sampling(temperature if index % 3 else 0.0, 0.95, 50, max_new_tokens),
            seed=int(rng.integers(0, 2**31)),
            num_logprobs=K,
        )
        for index in range(number)
    ]


def open_engine(config: Config, name: str, stops: tuple[int, ...] = (EOS,)) -> TeacherEngine:
    blueprint = EngineBlueprint(config, preflight(config, name), stops, 0, K, scoring=False)
    return build_engine(blueprint)


def generate_all(engine: TeacherEngine, requests: list[GenerationRequest]) -> list[Generation]:
    async def run() -> list[Generation]:
        return await asyncio.gather(*[engine.generate(request) for request in requests])

    return asyncio.run(run())


@pytest.fixture(params=["transformers", "fake"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_row_depends_on_its_seed_only(engine_name: str, make_config: MakeConfig) -> None:
    requests = make_requests()
    together = generate_all(open_engine(make_config(engine_name), engine_name), requests)
    backwards = generate_all(
        open_engine(make_config(engine_name, pipeline={"batch_size": 5}), engine_name), requests[::-1]
    )[::-1]
    alone = generate_all(
        open_engine(make_config(engine_name, tokenizer={"padding": False}), engine_name), requests
    )
    for first, second, third in zip(together, backwards, alone, strict=True):
        assert first.key == second.key
        assert np.array_equal(first.completion_token_ids, second.completion_token_ids)
        assert np.array_equal(first.completion_token_ids, third.completion_token_ids)


def test_other_seeds_give_other_completions(engine_name: str, make_config: MakeConfig) -> None:
    requests = [request for request in make_requests(30) if request.sampling.temperature]
    other = [
        GenerationRequest(r.key, r.prompt_token_ids, r.sampling, r.seed + 1, r.num_logprobs) for r in requests
    ]
    engine = open_engine(make_config(engine_name), engine_name)
    pairs = zip(generate_all(engine, requests), generate_all(engine, other), strict=True)
    assert any(not np.array_equal(a.completion_token_ids, b.completion_token_ids) for a, b in pairs)


def test_generation_and_scoring_agree(engine_name: str, make_config: MakeConfig) -> None:
    engine = open_engine(make_config(engine_name), engine_name)
    requests = make_requests()

    async def run() -> None:
        for request in requests:
            made = await engine.generate(request)
            scored = await engine.score(
                ScoreRequest(request.key, request.prompt_token_ids, made.completion_token_ids, K)
            )
            assert made.signal is not None
            assert np.allclose(
                made.signal.sampled_logprob_T, scored.sampled_logprob_T, atol=2e-3, rtol=ONE_STEP
            )
            assert np.allclose(np.exp(made.signal.tail_logprob_T), np.exp(scored.tail_logprob_T), atol=5e-3)
            assert np.array_equal(made.signal.topk_ids_TK[:, 0], scored.topk_ids_TK[:, 0])

    asyncio.run(run())


def test_rows_that_do_not_fit_are_rejected(engine_name: str, make_config: MakeConfig) -> None:
    engine = open_engine(make_config(engine_name), engine_name)
    long = GenerationRequest("long", np.full(128, 5, np.int32), Sampling(0.0, 1.0, 0, 4), 0, K)
    with pytest.raises(EngineRowError) as caught:
        asyncio.run(engine.generate(long))
    assert caught.value.code == "prompt_too_long"
    with pytest.raises(EngineRowError):
        asyncio.run(engine.score(ScoreRequest("long", np.full(120, 5, np.int32), np.full(9, 5, np.int32), K)))


def test_a_full_context_can_be_scored(engine_name: str, make_config: MakeConfig) -> None:
    engine = open_engine(make_config(engine_name), engine_name)
    request = ScoreRequest("full", np.full(120, 5, np.int32), np.full(8, 7, np.int32), K)
    assert asyncio.run(engine.score(request)).topk_ids_TK.shape == (8, K)


def test_limits_and_stops_are_kept(make_config: MakeConfig, teacher_dir: Path) -> None:
    requests = make_requests(16, max_new_tokens=20)
    free = generate_all(open_engine(make_config("transformers"), "transformers", stops=(299,)), requests)
    # Make a stop token of what some row says fifth: every row must now end with it, or reach its limit.
    stop = int(free[1].completion_token_ids[4])
    made = generate_all(open_engine(make_config("transformers"), "transformers", stops=(stop,)), requests)
    assert any(generation.finish_reason == "stop" for generation in made)
    for generation, before in zip(made, free, strict=True):
        ids = generation.completion_token_ids.tolist()
        assert generation.signal is not None
        assert len(generation.signal.sampled_logprob_T) == len(ids)
        if generation.finish_reason == "stop":
            assert ids[-1] == stop
            assert stop not in ids[:-1]
        else:
            assert len(ids) == 20
            assert stop not in ids
        assert ids == before.completion_token_ids.tolist()[: len(ids)]


@torch.inference_mode()
def test_signals_are_those_of_a_plain_forward_pass(make_config: MakeConfig, teacher_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()
    requests = make_requests(6)
    for made in generate_all(open_engine(make_config("transformers"), "transformers"), requests):
        request = next(request for request in requests if request.key == made.key)
        ids = [*request.prompt_token_ids.tolist(), *made.completion_token_ids.tolist()]
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert made.signal is not None
        for t, token in enumerate(made.completion_token_ids.tolist()):
            # The distribution that token t was drawn from stands one position before it.
            row = logprobs[len(request.prompt_token_ids) - 1 + t]
            best = row.topk(K)
            assert made.signal.topk_ids_TK[t].tolist() == best.indices.tolist()
            assert np.allclose(made.signal.topk_logprobs_TK[t], best.values, atol=5e-3, rtol=ONE_STEP)
            assert made.signal.sampled_logprob_T[t] == pytest.approx(
                float(row[token]), abs=2e-3, rel=ONE_STEP
            )
            assert np.exp(made.signal.tail_logprob_T[t]) == pytest.approx(
                1.0 - float(best.values.exp().sum()), abs=1e-3
            )


def test_right_padding_is_refused_for_generation(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        open_engine(make_config("transformers", tokenizer={"padding_side": "right"}), "transformers")
    assert "left" in caught.value.problems[0].fix


def test_a_teacher_of_nan_is_refused_at_load_with_the_weights_name(
    make_config: MakeConfig, teacher_dir: Path, tmp_path: Path
) -> None:
    """F22."""
    broken = Path(shutil.copytree(teacher_dir, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = make_config("transformers", model=broken)
    with pytest.raises(DataError, match=r"weight 'model\.layers\.1\.mlp\.down_proj\.weight' is not finite"):
        open_engine(config, "transformers")
