"""Kept logprobs: near the exact ones, in their order, and cheap to compress."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raystill.store.precision import (
    FINER_BANDS,
    RELATIVE_ERROR,
    SIGNIFICANT_BITS,
    keep_signal,
    round_logprobs,
)
from raystill.store.records import Score, TopKSignal
from raystill.store.selfcheck import check_scores

LOGPROBS = arrays.arrays(
    np.float32, st.integers(0, 40), elements=st.floats(-60_000, 0, width=32, allow_subnormal=False)
)


def kept(logprobs: np.ndarray, ids: np.ndarray | None = None) -> TopKSignal:
    """A signal of one position: `logprobs`, best first, and a tail of what they leave."""
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1.0 - np.exp(logprobs.astype(np.float64)).sum(), 0.0))
    ids = np.arange(len(logprobs), dtype=np.int32) if ids is None else ids
    return keep_signal(ids[None], logprobs[None], logprobs[:1], np.array([tail]))


@settings(max_examples=200, deadline=None)
@given(LOGPROBS)
def test_near_in_order_and_final(exact: np.ndarray) -> None:
    rounded = round_logprobs(exact)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact)
    assert (error <= np.abs(exact) * RELATIVE_ERROR).all()
    for lowest, highest in FINER_BANDS:
        inside = (exact >= lowest) & (exact <= highest)
        assert (error[inside] <= np.abs(exact[inside]) * RELATIVE_ERROR / 2).all()
    order = np.argsort(exact, kind="stable")
    assert (np.diff(rounded[order]) >= 0).all()
    assert np.array_equal(round_logprobs(rounded), rounded)
    dropped = (1 << (24 - SIGNIFICANT_BITS - 1)) - 1
    assert not (rounded.view(np.uint32) & dropped).any()


@settings(max_examples=100, deadline=None)
@given(LOGPROBS)
def test_float16_holds_what_is_kept(exact: np.ndarray) -> None:
    best_first = -np.sort(-np.where(exact > -6e-5, np.float32(0), exact))
    signal = keep_signal(np.zeros((1, len(exact)), np.int32), best_first[None], np.zeros(1), np.zeros(1))
    assert np.array_equal(signal.topk_logprobs_TK[0].astype(np.float32), round_logprobs(best_first))


def test_no_probability_is_off_by_more_than_a_thousandth() -> None:
    exact = np.linspace(-12, 0, 1_000_000, dtype=np.float32)
    assert np.abs(np.exp(round_logprobs(exact)) - np.exp(exact)).max() < 1e-3


def test_order_is_kept_at_the_ends_of_bands() -> None:
    ends = np.array([end for band in FINER_BANDS for end in band], np.float32)
    near = np.sort(np.concatenate([ends * np.float32(1 + step / 4096) for step in range(-64, 65)]))
    assert (np.diff(round_logprobs(near)) >= 0).all()
    assert np.array_equal(round_logprobs(ends), ends)


def test_ties_go_both_ways_so_that_mass_is_not_lost() -> None:
    step = 2.0**-8  # of nine bits between 1 and 2
    ties = -(1.0 + step * (np.arange(100) + 0.5))
    errors = round_logprobs(ties) - ties
    assert set(np.abs(errors)) == {step / 2}
    assert abs(errors.mean()) < 1e-6


def test_what_is_no_number_stays() -> None:
    odd = np.array([0.0, -0.0, -np.inf, np.nan], np.float32)
    every_nan = np.array([0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert round_logprobs(odd).tobytes() == odd.tobytes()
    assert np.isnan(round_logprobs(every_nan)).all()


@pytest.mark.parametrize("lowest", [-65504.0, -65300.0, -60_000.0])
def test_the_lowest_float16_does_not_become_infinite(lowest: float) -> None:
    assert np.isfinite(kept(np.array([-0.1, lowest])).topk_logprobs_TK).all()


@pytest.mark.parametrize("num_tokens", [2, 20, 200, 254, 256])
def test_equally_likely_tokens_pass_the_check_on_write(num_tokens: int) -> None:
    signal = kept(np.full(num_tokens, -np.log(num_tokens)))
    check_scores([Score("a", signal)], {"a": np.zeros(1, np.int32)})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 64), st.floats(0.3, 6))
def test_a_kept_distribution_passes_the_check_on_write(seed: int, num_logprobs: int, spread: float) -> None:
    logits = np.random.default_rng(seed).normal(size=200) * spread
    logprobs = logits - np.log(np.exp(logits).sum())
    ids = np.argsort(-logprobs)[:num_logprobs].astype(np.int32)
    signal = kept(logprobs[ids], ids)
    check_scores([Score("a", signal)], {"a": ids[:1]})


def test_errs_less_than_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(500, 2000)) * 3
    logprobs = -np.sort(-(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))), axis=1)[:, :20]
    bfloat = torch.tensor(logprobs).bfloat16().double().numpy()
    assert _kl(logprobs, round_logprobs(logprobs)) < 0.7 * _kl(logprobs, bfloat)


def _kl(exact: np.ndarray, rounded: np.ndarray) -> float:
    exact, rounded = (
        each - np.log(np.exp(each).sum(axis=1, keepdims=True))
        for each in (exact.astype(np.float64), rounded.astype(np.float64))
    )
    return float((np.exp(exact) * (exact - rounded)).sum(axis=1).mean())
