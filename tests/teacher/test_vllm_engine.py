"""vLLM, one engine for all: agrees with transformers, keeps EOS, scores full contexts, leaves no process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from raystill.config.schema import Config
from raystill.store.precision import RELATIVE_ERROR
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.engine import Generation, GenerationRequest, Sampling, ScoreRequest, TeacherEngine
from raystill.teacher.errors import EngineRowError
from raystill.teacher.preflight import preflight

# Two engines' numbers that differ by a hair may be kept one step apart.
ONE_STEP = 2 * RELATIVE_ERROR

pytest.importorskip("vllm")
K = 8
# Some of them come up in thirty tokens of a random model, and not in every row.
STOPS = tuple(range(40, 52))


def make_requests() -> list[GenerationRequest]:
    rng = np.random.default_rng(3)
    return [
        GenerationRequest(
            key=f"row{index}",
            prompt_token_ids=rng.integers(3, 300, rng.integers(2, 90)).astype(np.int32),
            sampling=Sampling(1.0 if index % 2 else 0.0, 0.95, 0, 30),
            seed=index,
            num_logprobs=K,
        )
        for index in range(24)
    ]


async def check_engines(vllm: TeacherEngine, exact: TeacherEngine) -> None:
    requests = make_requests()
    made = await asyncio.gather(*[vllm.generate(request) for request in requests])
    scores = [
        ScoreRequest(f"score-{request.key}", request.prompt_token_ids, generation.completion_token_ids, K)
        for request, generation in zip(requests, made, strict=True)
    ]
    forced = await asyncio.gather(*[vllm.score(score) for score in scores])
    wanted = await asyncio.gather(*[exact.score(score) for score in scores])
    for generation, own, reference in zip(made, forced, wanted, strict=True):
        check_row(generation)
        assert generation.signal is not None
        for signal in (generation.signal, own):
            assert np.allclose(
                signal.sampled_logprob_T, reference.sampled_logprob_T, atol=2e-3, rtol=ONE_STEP
            )
            assert np.allclose(signal.topk_logprobs_TK, reference.topk_logprobs_TK, atol=1e-2, rtol=ONE_STEP)
            assert np.allclose(np.exp(signal.tail_logprob_T), np.exp(reference.tail_logprob_T), atol=5e-3)
    assert any(generation.finish_reason == "stop" for generation in made)
    assert any(generation.finish_reason == "length" for generation in made)
    greedy = [request for request in requests if request.sampling.temperature == 0.0]
    same = await asyncio.gather(*[exact.generate(request) for request in greedy])
    for generation in same:
        twin = next(other for other in made if other.key == generation.key)
        assert np.array_equal(generation.completion_token_ids, twin.completion_token_ids)
    await check_again(vllm, requests, made)


def check_row(generation: Generation) -> None:
    ids = generation.completion_token_ids.tolist()
    assert generation.signal is not None
    assert generation.signal.topk_ids_TK.shape == (len(ids), K)
    if generation.finish_reason == "stop":
        assert ids[-1] in STOPS
    assert not set(STOPS) & set(ids[:-1])
    # The sampled token stands at its own position with its own logprob.
    for t, token in enumerate(ids):
        found = np.flatnonzero(generation.signal.topk_ids_TK[t] == token)
        if len(found):
            stored = generation.signal.topk_logprobs_TK[t, found[0]]
            assert stored == pytest.approx(generation.signal.sampled_logprob_T[t], abs=2e-2, rel=ONE_STEP)


async def check_again(vllm: TeacherEngine, requests: list[GenerationRequest], made: list[Generation]) -> None:
    """Seeds decide, whatever else is in the batch."""
    seeded = [index for index, request in enumerate(requests) if request.sampling.temperature][:4]
    for index in seeded:
        again = await vllm.generate(requests[index])
        assert np.array_equal(again.completion_token_ids, made[index].completion_token_ids)


async def check_edges(vllm: TeacherEngine) -> None:
    full = ScoreRequest("full", np.full(120, 5, np.int32), np.full(8, 7, np.int32), K)
    assert (await vllm.score(full)).topk_ids_TK.shape == (8, K)
    single = ScoreRequest("single", np.full(3, 5, np.int32), np.full(1, 7, np.int32), K)
    assert (await vllm.score(single)).topk_ids_TK.shape == (1, K)
    tight = GenerationRequest("tight", np.full(126, 5, np.int32), Sampling(0.0, 1.0, 0, 30), 0, 0)
    generation = await vllm.generate(tight)
    assert len(generation.completion_token_ids) <= 2
    assert generation.signal is None
    long = GenerationRequest("long", np.full(128, 5, np.int32), Sampling(0.0, 1.0, 0, 4), 0, K)
    with pytest.raises(EngineRowError) as caught:
        await vllm.generate(long)
    assert caught.value.code == "prompt_too_long"


@pytest.mark.vllm
def test_vllm_agrees_with_transformers_and_ends(make_config: Callable[..., Config]) -> None:
    async def run() -> None:
        config = make_config("vllm")
        before = set(psutil.Process().children(recursive=True))
        vllm = build_engine(EngineBlueprint(config, preflight(config, "vllm"), STOPS, 0, K, False))
        engine_processes = set(psutil.Process().children(recursive=True)) - before
        exact = build_engine(EngineBlueprint(config, preflight(config, "transformers"), STOPS, 0, K, False))
        try:
            await check_engines(vllm, exact)
            await check_edges(vllm)
        finally:
            vllm.shutdown()
        vllm.shutdown()
        left = [child.name() for child in engine_processes if child.is_running()]
        assert [name for name in left if "VLLM" in name] == []

    asyncio.run(run())


_ORPHAN_SCRIPT = """
import subprocess, sys, time
import psutil
from raystill.teacher.orphan_guard import guard_children, list_children
before = list_children()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
children = list_children() - before
guard_children(children)
print(*[child.pid for child in children], flush=True)
time.sleep(600)
"""


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_ORPHAN_SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=60)[1] == []
