"""DistillKit's codec: bit order, what each bin means, and bounds on what is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.errors import DataError
from raystill.store.distillkit_codec import (
    CompressionConfig,
    ResidualBin,
    decode_logprobs,
    default_config,
    encode_logprobs,
    pack_bits,
    unpack_bits,
)


def sorted_logprobs(seed: int, num_tokens: int, num_logprobs: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3.0, size=(num_tokens, num_logprobs + 50))
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.sort(-logprobs, axis=1)[:, :num_logprobs]


def test_bits_are_packed_most_significant_first() -> None:
    packed = pack_bits(np.array([[0b101, 0b011, 0b110]]), 3)
    assert packed.tolist() == [[0b10101111, 0b00000000]]
    assert unpack_bits(packed, 3, 3).tolist() == [[5, 3, 6]]


@settings(max_examples=50, deadline=None)
@given(bits=st.integers(1, 31), count=st.integers(0, 9), rows=st.integers(0, 4), data=st.data())
def test_integers_of_any_width_survive(bits: int, count: int, rows: int, data: st.DataObject) -> None:
    cells = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    values = np.array(data.draw(st.lists(cells, min_size=rows, max_size=rows)), np.int64).reshape(rows, count)
    assert unpack_bits(pack_bits(values, bits), bits, count).tolist() == values.tolist()


def test_a_position_is_exact_values_then_coefficients_then_bins() -> None:
    config = CompressionConfig(
        d=100, k=5, exact_k=1, exact_dtype="bfloat16", polynomial_terms=(0, 1), term_dtype="float32",
        residual_bins=(ResidualBin(scale_dtype="float16", element_bits=4, num_elements=2),
                       ResidualBin(scale_dtype="float32", element_bits=1, num_elements=1)),
        delta_encoding=False,
    )  # fmt: skip
    position = (
        b"\x80\xbf"  # -1 as bfloat16
        + np.array([-2.0, -0.5], "<f4").tobytes()
        + np.array([0.25], "<f2").tobytes() + b"\x9f"  # 9 and 15 of 4 bits: +1 and +7 steps
        + np.array([0.125], "<f4").tobytes() + b"\x00"  # one bit, not set: minus the scale
    )  # fmt: skip
    decoded = decode_logprobs(np.frombuffer(position, np.uint8)[None, :], config)
    assert decoded.tolist() == [[-1.0, -2.0 + 0.25, -2.5 + 1.75, -3.0 - 0.125, -3.5]]
    delta = config.model_copy(update={"delta_encoding": True})
    running = decode_logprobs(np.frombuffer(position, np.uint8)[None, :], delta)
    assert running.tolist() == np.cumsum(decoded, axis=1).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_tokens=st.integers(1, 8), width=st.integers(1, 60))
def test_the_default_keeps_float16_or_fits_closely(seed: int, num_tokens: int, width: int) -> None:
    logprobs = sorted_logprobs(seed, num_tokens, width).astype(np.float16)
    config = default_config(width, 1000)
    packed = encode_logprobs(logprobs, config)
    assert packed.shape == (num_tokens, config.logprob_bytes)
    decoded = decode_logprobs(packed, config)
    np.testing.assert_array_equal(
        decoded[:, : config.exact_k].astype(np.float16), logprobs[:, : config.exact_k]
    )
    assert np.abs(decoded - logprobs).max() < 1.0


@pytest.mark.parametrize("normalize_t", [False, True])
def test_a_bin_of_many_bits_restores_what_the_polynomial_misses(normalize_t: bool) -> None:
    logprobs = sorted_logprobs(1, 20, 50)
    config = CompressionConfig(
        d=1000, k=50, exact_k=2, polynomial_terms=(0, 1, "sqrt"), normalize_t=normalize_t,
        residual_bins=(ResidualBin(scale_dtype="float32", element_bits=12, num_elements=48),),
        delta_encoding=False,
    )  # fmt: skip
    decoded = decode_logprobs(encode_logprobs(logprobs, config), config)
    assert np.abs(decoded - logprobs).max() < 2e-3


def test_bytes_of_another_width_are_refused() -> None:
    config = default_config(4, 100)
    with pytest.raises(DataError, match="bytes of logprobs"):
        decode_logprobs(np.zeros((2, config.logprob_bytes + 1), np.uint8), config)
    with pytest.raises(DataError, match="hold no"):
        unpack_bits(np.zeros((2, 3), np.uint8), 7, 4)
