"""DistillKit's codec for top-k logprobs, both ways, written from its format.

Per position, `compressed_logprobs` is, in this order: the `exact_k` best logprobs as `exact_dtype`; the
coefficients of `polynomial_terms` as `term_dtype`; then every residual bin: its scale as `scale_dtype`, and
`num_elements` unsigned integers of `element_bits` bits, most significant bit first, filled up to a byte.
Numbers are little-endian. Rank exact_k + t is sum_i(coefficient_i * term_i(t)) + scale * (integer -
2^(bits-1)), where t counts 0, 1, ... (or runs from 0 to 1 with `normalize_t`); one bit means minus or plus
the scale; ranks beyond the bins have no residual. With `delta_encoding` the logprobs are the running sum of
all that. `bytepacked_indices` are the k token ids of ceil(log2(d)) bits each, packed alike.

Shape letters: T tokens, K stored logprobs, R ranks beyond exact_k, P polynomial terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raystill.errors import DataError

CONFIG_NAME = "compression_config.yaml"
DtypeName = Literal["float16", "bfloat16", "float32", "float64"]
_BYTES: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_MAX_POLYNOMIAL = 64
FloatArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


class ResidualBin(BaseModel):
    """Quantised differences from the polynomial for the next `num_elements` ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale_dtype: DtypeName
    element_bits: int = Field(gt=0, le=32)
    num_elements: int = Field(gt=0)


class CompressionConfig(BaseModel):
    """`compression_config.yaml`: what decodes the columns. `d` is the vocabulary, `k` the stored logprobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d: int = Field(gt=0, lt=2**31)
    k: int = Field(gt=0, le=4096)
    exact_k: int = Field(ge=0)
    exact_dtype: DtypeName = "float32"
    polynomial_terms: tuple[Literal["sqrt", "exp"] | int, ...] | None = Field(
        None, max_length=_MAX_POLYNOMIAL
    )
    term_dtype: DtypeName = "float32"
    residual_bins: tuple[ResidualBin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        rest = self.k - self.exact_k
        if rest < 0 or self.k > self.d:
            raise ValueError("exact_k <= k <= d must hold")
        if rest and not self.polynomial_terms and not self.residual_bins:
            raise ValueError("ranks beyond exact_k need polynomial_terms or residual_bins")
        if sum(part.num_elements for part in self.residual_bins) > rest:
            raise ValueError("the residual bins hold more than k - exact_k ranks")
        return self

    @property
    def index_bits(self) -> int:
        """Bits of one token id."""
        return (self.d - 1).bit_length()

    @property
    def logprob_bytes(self) -> int:
        """Bytes of one position's `compressed_logprobs`."""
        size = self.exact_k * _BYTES[self.exact_dtype]
        size += len(self.polynomial_terms or ()) * _BYTES[self.term_dtype]
        return size + sum(
            _BYTES[part.scale_dtype] + _packed_bytes(part.num_elements, part.element_bits)
            for part in self.residual_bins
        )

    @property
    def index_bytes(self) -> int:
        """Bytes of one position's `bytepacked_indices`."""
        return _packed_bytes(self.k, self.index_bits)


def load_compression_config(path: Path) -> CompressionConfig:
    """Read `compression_config.yaml`. Raises DataError where it is missing, unreadable or impossible."""
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and "logprob_compressor" in facts:
            facts = facts["logprob_compressor"]
        return CompressionConfig.model_validate(facts)
    except FileNotFoundError as error:
        raise DataError(
            "DistillKit's columns can't be decoded without the parameters of their codec",
            where=str(path),
            fix=f"put the dataset's {CONFIG_NAME} beside its Parquet files, or name it with --codec",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
        raise _unreadable(path, why) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from error


def default_config(num_logprobs: int, vocab_size: int) -> CompressionConfig:
    """DistillKit's recommendation for K logprobs: 16 exact, a polynomial of six terms for the rest.

    Exact ones are float16 as in the store, of the recommended bfloat16's size and without its loss. Six
    coefficients of four bytes need more than twelve values to be worth it: below K = 28 all are exact.
    """
    whole = num_logprobs < 28
    return CompressionConfig(
        d=vocab_size,
        k=num_logprobs,
        exact_k=num_logprobs if whole else 16,
        exact_dtype="float16",
        polynomial_terms=None if whole else (0, 1, 2, 3, 4, "sqrt"),
        delta_encoding=False,
    )


def decode_logprobs(packed: ByteArray, config: CompressionConfig) -> FloatArray:
    """T x `config.logprob_bytes` to T x K logprobs, rank by rank. Raises DataError for another width."""
    if packed.ndim != 2 or packed.shape[1] != config.logprob_bytes:
        raise DataError(
            f"a position has {packed.shape[-1]} bytes of logprobs, the codec's parameters give "
            f"{config.logprob_bytes}",
            fix=f"use the {CONFIG_NAME} with which the dataset was made",
        )
    exact_TE, packed = _take_floats(packed, config.exact_k, config.exact_dtype)
    rest = config.k - config.exact_k
    approx_TR = np.zeros((len(packed), rest))
    if config.polynomial_terms:
        terms_TP, packed = _take_floats(packed, len(config.polynomial_terms), config.term_dtype)
        approx_TR += _evaluate(terms_TP, config)
    start = 0
    for part in config.residual_bins:
        scale_T1, packed = _take_floats(packed, 1, part.scale_dtype)
        width = _packed_bytes(part.num_elements, part.element_bits)
        values = unpack_bits(packed[:, :width], part.element_bits, part.num_elements)
        approx_TR[:, start : start + part.num_elements] += _steps_of(values, part.element_bits) * scale_T1
        packed, start = packed[:, width:], start + part.num_elements
    logprobs_TK = np.concatenate([exact_TE, approx_TR], axis=1)
    return np.cumsum(logprobs_TK, axis=1) if config.delta_encoding else logprobs_TK


def encode_logprobs(logprobs_TK: npt.NDArray[Any], config: CompressionConfig) -> ByteArray:
    """Sorted logprobs to bytes: a least-squares fit, residuals rounded to the nearest step of their part.

    With `delta_encoding` the errors of the ranks add up; DistillKit advises against it, and it is written
    only where `config` asks for it. Raises ValueError for another K.
    """
    values_TK = np.asarray(logprobs_TK, np.float64)
    if values_TK.shape[1] != config.k:
        raise ValueError(f"{values_TK.shape[1]} logprobs for a codec of {config.k}")
    if config.delta_encoding:
        values_TK = np.diff(values_TK, axis=1, prepend=0.0)
    chunks = [_float_bytes(values_TK[:, : config.exact_k], config.exact_dtype)]
    residual_TR = values_TK[:, config.exact_k :].copy()
    if config.polynomial_terms:
        basis_RP = _basis(config)
        terms_TP = residual_TR @ np.linalg.pinv(basis_RP, rcond=1e-10).T
        chunks.append(_float_bytes(terms_TP, config.term_dtype))
        residual_TR -= _evaluate(_round(terms_TP, config.term_dtype), config)
    start = 0
    for part in config.residual_bins:
        values_TN = residual_TR[:, start : start + part.num_elements]
        scale_T1, whole_TN = _quantise(values_TN, part)
        chunks += [
            _float_bytes(scale_T1, part.scale_dtype),
            pack_bits(whole_TN, part.element_bits),
        ]
        start += part.num_elements
    return np.concatenate(chunks, axis=1)


def pack_bits(values: IntArray, bits: int) -> ByteArray:
    """T x N unsigned integers to T x ceil(N * bits / 8) bytes, most significant bit first."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.int64)
    planes = ((values[:, :, None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(planes.reshape(len(values), values.shape[1] * bits), axis=1)


def unpack_bits(packed: ByteArray, bits: int, count: int) -> IntArray:
    """The inverse of `pack_bits` for `count` integers. Raises DataError where there are too few bytes."""
    if packed.shape[1] != _packed_bytes(count, bits):
        raise DataError(
            f"{packed.shape[1]} bytes hold no {count} integers of {bits} bits",
            fix=f"use the {CONFIG_NAME} with which the dataset was made",
        )
    planes = np.unpackbits(packed, axis=1, count=count * bits).reshape(len(packed), count, bits)
    return planes @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _take_floats(packed: ByteArray, count: int, dtype: str) -> tuple[FloatArray, ByteArray]:
    width = count * _BYTES[dtype]
    raw = np.ascontiguousarray(packed[:, :width])
    if dtype == "bfloat16":
        high = raw.view("<u2").astype(np.uint32) << 16 if count else np.empty((len(raw), 0), np.uint32)
        values = high.view(np.float32)
    else:
        kind = f"<f{_BYTES[dtype]}"
        values = raw.view(kind) if count else np.empty((len(raw), 0), kind)
    return values.astype(np.float64), packed[:, width:]


def _float_bytes(values: FloatArray, dtype: str) -> ByteArray:
    rounded = _round(values, dtype)
    if dtype == "bfloat16":
        typed: npt.NDArray[Any] = (rounded.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    else:
        typed = rounded.astype(f"<f{_BYTES[dtype]}")
    return np.ascontiguousarray(typed).view(np.uint8).reshape(len(values), values.shape[1] * _BYTES[dtype])


def _round(values: FloatArray, dtype: str) -> FloatArray:
    """The nearest values of `dtype`; bfloat16 is the upper half of a float32, ties to even."""
    if dtype != "bfloat16":
        return values.astype(f"<f{_BYTES[dtype]}").astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def _basis(config: CompressionConfig) -> FloatArray:
    """Values of the terms at every rank beyond exact_k, as the decoder has them: in `term_dtype`."""
    count = config.k - config.exact_k
    points = np.linspace(0.0, 1.0, count) if config.normalize_t else np.arange(count, dtype=np.float64)
    points = _round(points, config.term_dtype)
    columns = [
        {"sqrt": np.sqrt, "exp": np.exp}[term](points) if isinstance(term, str) else points**term
        for term in config.polynomial_terms or ()
    ]
    return _round(np.stack(columns, axis=-1), config.term_dtype)


def _evaluate(terms_TP: FloatArray, config: CompressionConfig) -> FloatArray:
    return terms_TP @ _basis(config).T


def _quantise(values_TN: FloatArray, part: ResidualBin) -> tuple[FloatArray, IntArray]:
    """A scale per position, as the decoder will read it, and the nearest integers in steps of it."""
    bits, size_TN = part.element_bits, np.abs(values_TN)
    # Of one bit only the sign is left, and the mean size is what it errs least with.
    scale_T1 = size_TN.mean(axis=1) if bits == 1 else size_TN.max(axis=1) / 2 ** (bits - 1)
    scale_T1 = _round(scale_T1[:, None], part.scale_dtype)
    scale_T1 = np.where(scale_T1 == 0.0, 1.0, scale_T1)
    if bits == 1:
        return scale_T1, (values_TN >= 0.0).astype(np.int64)
    middle = 2 ** (bits - 1)
    steps_TN = np.clip(np.round(values_TN / scale_T1), -middle, middle - 1)
    return scale_T1, steps_TN.astype(np.int64) + middle


def _steps_of(whole_TN: IntArray, bits: int) -> IntArray:
    """What the stored integers stand for, in steps of the scale."""
    return 2 * whole_TN - 1 if bits == 1 else whole_TN - 2 ** (bits - 1)


def _packed_bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"the codec's parameters can't be read: {why}",
        where=str(path),
        fix="use the file that came with the dataset",
    )
