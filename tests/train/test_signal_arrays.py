"""Draws and hidden states on their way into a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raystill.losses.teachers import DenseTeacher, SampledTeacher
from raystill.store.tier_records import HiddenSignal, SampledSignal
from raystill.train.collate_teacher import collate_teacher
from raystill.train.examples import Example, ExampleSet
from raystill.train.signal_arrays import StoredSignal, cut_signal, fit_signal, ids_of, rename_ids
from raystill.train.teacher_head import TeacherHead

V, D = 12, 6


def draw(length: int, seed: int, draws: int = 9) -> tuple[SampledSignal, np.ndarray[Any, Any]]:
    """A signal, and its shares as [T, V]."""
    generator = np.random.default_rng(seed)
    counts_TV = np.stack(
        [generator.multinomial(draws, generator.dirichlet(np.ones(V))) for _ in range(length)]
    )
    token_E, id_E = np.nonzero(counts_TV)
    signal = SampledSignal(
        draws,
        np.bincount(token_E, minlength=length).astype(np.int32),
        id_E.astype(np.int32),
        counts_TV[token_E, id_E].astype(np.uint16),
        np.zeros(length, np.float32),
    )
    return signal, counts_TV / draws


def example(signal: StoredSignal, prompt: int, completion: int) -> Example:
    return Example(np.arange(prompt + completion, dtype=np.int32) % V, prompt, signal)


def spread(teacher: SampledTeacher) -> np.ndarray[Any, Any]:
    """[N, V] shares."""
    shares = torch.zeros(teacher.ids_NU.shape[0], V).scatter_add_(1, teacher.ids_NU, teacher.weights_NU)
    return shares.numpy()


def test_a_batch_holds_the_draws_of_its_targets_in_order() -> None:
    signals = [draw(length, seed) for seed, length in enumerate((3, 1, 4))]
    examples = ExampleSet([example(signal, 2, len(shares)) for signal, shares in signals])
    again = ExampleSet.from_arrays(examples.to_arrays(), examples.source_names)
    for rows in ([0, 1, 2], [2, 0], [1]):
        for source in (examples, again):
            teacher = collate_teacher(source, rows, torch.device("cpu"))
            assert isinstance(teacher, SampledTeacher)
            wanted = np.concatenate([signals[row][1] for row in rows])
            np.testing.assert_allclose(spread(teacher), wanted, rtol=1e-6)


def test_a_cut_row_keeps_the_draws_of_what_is_left() -> None:
    signal, shares = draw(5, 1)
    cut = cut_signal(signal, 2)
    teacher = collate_teacher(ExampleSet([example(cut, 1, 2)]), [0], torch.device("cpu"))
    assert isinstance(teacher, SampledTeacher)
    np.testing.assert_allclose(spread(teacher), shares[:2], rtol=1e-6)


def test_draws_that_the_student_has_no_logit_for_become_tail() -> None:
    signal, shares = draw(6, 2)
    fitted = fit_signal(signal, 4)
    teacher = collate_teacher(ExampleSet([example(fitted, 1, 6)]), [0], torch.device("cpu"))
    assert isinstance(teacher, SampledTeacher)
    np.testing.assert_allclose(spread(teacher)[:, :4], shares[:, :4], rtol=1e-6)
    tail = teacher.as_topk().tail_logprob_N.exp()
    np.testing.assert_allclose(tail.numpy(), shares[:, 4:].sum(1), atol=1e-6)
    assert fit_signal(signal, V) is signal
    whole = SampledTeacher(torch.zeros(1, 7, dtype=torch.int64), torch.full((1, 7), 1 / 7))
    assert torch.isneginf(whole.as_topk().tail_logprob_N).all()


def test_ids_can_be_renamed() -> None:
    signal, _ = draw(3, 3)
    assert ids_of(rename_ids(signal, ids_of(signal) + 1)).tolist() == (signal.draw_ids_E + 1).tolist()


def test_hidden_states_become_a_dense_teacher_with_its_own_head() -> None:
    states = np.random.default_rng(0).normal(size=(5, D)).astype(np.float16)
    examples = ExampleSet([example(HiddenSignal(states[:3]), 1, 3), example(HiddenSignal(states[3:]), 0, 2)])
    examples.teacher_head = TeacherHead(torch.ones(V, D), softcap=30.0, scale=0.5)
    teacher = collate_teacher(examples, [1, 0], torch.device("cpu"))
    assert isinstance(teacher, DenseTeacher) and teacher.softcap == 30.0 and teacher.scale == 0.5
    # A row without a prompt has no state for its first token, which nothing predicts.
    np.testing.assert_array_equal(teacher.hidden_ND.numpy(), states[[4, 0, 1, 2]])
    assert cut_signal(HiddenSignal(states), 2) is not None
    assert len(ids_of(HiddenSignal(states))) == 0


def test_kinds_are_never_mixed() -> None:
    mixed = [example(draw(2, 0)[0], 1, 2), example(HiddenSignal(np.ones((2, D), np.float16)), 1, 2)]
    with pytest.raises(AssertionError, match="mixed"):
        ExampleSet(mixed)
