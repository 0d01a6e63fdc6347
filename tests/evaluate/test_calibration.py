"""Calibration error against a naive float64 loop over the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raystill.evaluate.calibration import NUM_BINS, ReliabilityBins, bin_confidences, measure_calibration
from raystill.evaluate.intervals import compute_calibration_interval


def naive_error(logits_NV: torch.Tensor, target_N: torch.Tensor) -> float:
    """ECE token by token, bin by bin."""
    p_NV = torch.softmax(logits_NV.double(), -1).numpy()
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p_V, target in zip(p_NV, target_N.tolist(), strict=True):
        confidence = p_V.max()
        place = next(m for m in range(NUM_BINS) if confidence <= (m + 1) / NUM_BINS)
        bins.setdefault(place, []).append((confidence, bool(p_V.argmax() == target)))
    return sum(
        len(entries) / len(p_NV) * abs(np.mean([p for p, _ in entries]) - np.mean([r for _, r in entries]))
        for entries in bins.values()
    )


def draw(rows: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and targets drawn from their own softmax: a perfectly calibrated model at scale 1."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = 2 * torch.randn(rows, 11, generator=generator)
    target_N = torch.multinomial(torch.softmax(logits_NV, -1), 1, generator=generator)[:, 0]
    return scale * logits_NV, target_N


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_equals_the_definition_however_tokens_are_cut_into_rows(scale: float) -> None:
    logits_NV, target_N = draw(500, scale)
    cuts = [slice(0, 1), slice(1, 200), slice(200, 500)]
    rows = [bin_confidences(logits_NV[cut], target_N[cut]) for cut in cuts]
    found = measure_calibration(rows)
    assert found.value == pytest.approx(naive_error(logits_NV, target_N), abs=1e-12)
    assert sum(sum(row.counts) for row in rows) == 500 and found.n == 3
    right = (logits_NV.argmax(-1) == target_N).sum().item()
    assert sum(sum(row.num_right) for row in rows) == right


def test_honest_probabilities_have_hardly_any_error_and_boasting_ones_do() -> None:
    errors = [measure_calibration([bin_confidences(*draw(20_000, scale))]).value for scale in (1.0, 3.0)]
    assert errors[0] < 0.02 < 0.1 < errors[1]


def test_certainty_falls_into_the_last_bin() -> None:
    bins = bin_confidences(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert bins.counts[-1] == 2 and bins.num_right[-1] == 1
    assert measure_calibration([bins]).value == pytest.approx(0.5)


def test_the_interval_holds_its_value_and_shrinks_with_prompts() -> None:
    logits_NV, target_N = draw(4000, 3.0)
    rows = [bin_confidences(logits_NV[i : i + 20], target_N[i : i + 20]) for i in range(0, 4000, 20)]
    few, many = measure_calibration(rows[:20]), measure_calibration(rows)
    for interval in (few, many):
        assert interval.low <= interval.value <= interval.high
    assert many.high - many.low < few.high - few.low


def test_nothing_measured_is_refused() -> None:
    empty = ReliabilityBins((0,) * NUM_BINS, (0.0,) * NUM_BINS, (0,) * NUM_BINS)
    with pytest.raises(ValueError, match="nothing"):
        measure_calibration([empty])
    with pytest.raises(ValueError, match="nothing"):
        compute_calibration_interval(np.zeros((0, 2)), np.zeros(0))
