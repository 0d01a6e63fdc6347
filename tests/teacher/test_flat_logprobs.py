"""Conversion of vLLM's flat logprobs: layout, positions, tails."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from raystill.store.precision import RELATIVE_ERROR
from raystill.teacher.flat_logprobs import compute_tail_logprob, generated_signal, prompt_signal


@dataclass
class Flat:
    """The two lists of vLLM's FlatLogprobs that the conversion reads."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def make_flat(distributions: list[np.ndarray], sampled: list[int], k: int) -> Flat:
    """As vLLM lays it out: per position the sampled token, then the k best."""
    flat = Flat()
    for logprobs_V, token in zip(distributions, sampled, strict=True):
        best = np.argsort(-logprobs_V)[:k]
        flat.token_ids += [token, *best.tolist()]
        flat.logprobs += [float(logprobs_V[token]), *logprobs_V[best].tolist()]
    return flat


def random_distributions(rng: np.random.Generator, positions: int, vocabulary: int) -> list[np.ndarray]:
    logits = rng.normal(size=(positions, vocabulary)) * 3
    return list(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def test_every_token_gets_its_own_position() -> None:
    rng = np.random.default_rng(0)
    distributions = random_distributions(rng, 9, 50)
    sampled = rng.integers(0, 50, 9).tolist()
    signal = generated_signal(make_flat(distributions, sampled, 4), 9, 4)
    for t in range(9):
        order = np.argsort(-distributions[t])
        assert signal.topk_ids_TK[t].tolist() == order[:4].tolist()
        assert signal.sampled_logprob_T[t] == pytest.approx(distributions[t][sampled[t]], rel=RELATIVE_ERROR)
        tail = np.log(np.exp(distributions[t][order[4:]]).sum())
        assert signal.tail_logprob_T[t] == pytest.approx(tail, rel=RELATIVE_ERROR)


def test_prompt_signal_skips_the_prompt() -> None:
    rng = np.random.default_rng(1)
    num_prompt, num_tokens, k = 5, 7, 3
    # Entry i of a text is the distribution of token i; the first token has none.
    distributions = random_distributions(rng, num_prompt + num_tokens - 1, 40)
    tokens = rng.integers(0, 40, num_prompt + num_tokens - 1).tolist()
    signal = prompt_signal(make_flat(distributions, tokens, k), num_prompt, num_tokens, k)
    wanted = generated_signal(
        make_flat(distributions[num_prompt - 1 :], tokens[num_prompt - 1 :], k), num_tokens, k
    )
    assert np.array_equal(signal.topk_ids_TK, wanted.topk_ids_TK)
    assert np.array_equal(signal.sampled_logprob_T, wanted.sampled_logprob_T)


def test_rounding_never_makes_a_tail_nan() -> None:
    topk = np.log(np.array([[0.6, 0.4 + 1e-7], [0.5, 0.25]], dtype=np.float32))
    tail = compute_tail_logprob(topk)
    assert tail[0] == -np.inf
    assert tail[1] == pytest.approx(np.log(0.25), abs=1e-6)


def test_masked_tokens_stay_finite() -> None:
    flat = Flat([1, 1, 2], [0.0, 0.0, -np.inf])
    signal = generated_signal(flat, 1, 2)
    assert np.isfinite(signal.topk_logprobs_TK).all()


def test_a_cut_list_is_an_error() -> None:
    with pytest.raises(ValueError, match="logprob entries"):
        generated_signal(Flat([1, 2], [0.0, -1.0]), 2, 1)
