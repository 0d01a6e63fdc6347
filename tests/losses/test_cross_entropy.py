from __future__ import annotations

import torch

from raystill.losses.cross_entropy import cross_entropy


def test_value_and_probabilities_equal_the_definition() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, probabilities = cross_entropy(logits, logits[:, 1])
    torch.testing.assert_close(probabilities, torch.softmax(logits, -1))
    torch.testing.assert_close(value, -torch.log_softmax(logits, -1)[:, 1])


def test_an_empty_outcome_has_no_probability() -> None:
    logits = torch.tensor([[0.0, -torch.inf]])
    value, probabilities = cross_entropy(logits, logits[:, 0])
    assert value.item() == 0.0 and probabilities.tolist() == [[1.0, 0.0]]
