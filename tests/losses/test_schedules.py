from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystill.errors import ConfigError
from raystill.losses.schedules import Ramp, ScheduledTerms
from raystill.losses.terms import EntropyDriven, LossTerms, refuse_combination


def test_a_ramp_goes_from_its_first_value_to_its_last_and_stays() -> None:
    ramp = Ramp("linear", 3.0, 1.0, steps=5)
    assert [ramp.at(step, 100) for step in (0, 2, 4, 50)] == [3.0, 2.0, 1.0, 1.0]
    half = Ramp("linear", 0.0, 1.0, fraction=0.5)
    assert half.at(0, 101) == 0.0 and half.at(49, 100) == 1.0 and half.at(99, 100) == 1.0


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["linear", "cosine"]))
def test_a_ramp_never_leaves_its_ends(steps: int, step: int, shape: str) -> None:
    value = Ramp(shape, 0.2, 0.7, steps=steps).at(step, 60)  # type: ignore[arg-type]
    assert 0.2 <= value <= 0.7
    assert value <= Ramp(shape, 0.2, 0.7, steps=steps).at(step + 1, 60)  # type: ignore[arg-type]


def test_a_cosine_is_flat_at_both_ends() -> None:
    ramp = Ramp("cosine", 0.0, 1.0, steps=101)
    assert ramp.at(1, 200) < 0.001 and ramp.at(50, 200) == pytest.approx(0.5) and ramp.at(99, 200) > 0.999


def test_terms_move_with_the_step_and_end_where_the_ramps_end() -> None:
    terms = ScheduledTerms(
        LossTerms(0.5, 0.5, "jsd"),
        kl_weight=Ramp("linear", 0.0, 1.0, steps=11),
        kd_temperature=Ramp("linear", 3.0, 1.0, steps=11),
    )
    assert terms.at(0, 20) == LossTerms(0.5, 0.0, "jsd", 3.0) and not terms.at(0, 20).uses_teacher
    assert terms.at(5, 20) == LossTerms(0.5, 0.5, "jsd", 2.0)
    assert terms.last == terms.at(19, 20) == LossTerms(0.5, 1.0, "jsd", 1.0)
    assert terms.uses_teacher and terms.describe()["ce_weight"] == 0.5


def test_the_entropy_of_the_teacher_drives_values_as_the_first_seed_does() -> None:
    """r = clamp((H - 2) / 6, 0, 1); T = 1.5 + 1.5 r; kl = 0.5 r; ce = 1 - 0.5 r."""
    entropy = torch.tensor([0.0, 2.0, 5.0, 8.0, 11.0])
    assert EntropyDriven(1.5, 3.0).at(entropy).tolist() == [1.5, 1.5, 2.25, 3.0, 3.0]
    assert EntropyDriven(0.0, 0.5).at(entropy).tolist() == [0.0, 0.0, 0.25, 0.5, 0.5]
    assert EntropyDriven(1.0, 0.5).at(entropy).tolist() == [1.0, 1.0, 0.75, 0.5, 0.5]


def test_a_factor_reaches_every_kind_of_weight() -> None:
    assert LossTerms(1.0, 0.5).scaled(3.0).kl_weight == 1.5
    assert LossTerms(1.0, EntropyDriven(0.1, 0.5)).scaled(2.0).kl_weight == EntropyDriven(0.2, 1.0)
    assert LossTerms(1.0, 0.5).scaled(1.0) == LossTerms(1.0, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ce_weight": 0.0, "kl_weight": Ramp("linear", 1.0, 0.0)},
        {"kd_temperature": Ramp("linear", 2.0, 0.0)},
        {"kl_weight": Ramp("linear", -1.0, 1.0)},
    ],
)
def test_schedules_that_pass_through_nothing_are_refused(wrong: dict[str, Ramp | float]) -> None:
    with pytest.raises(ConfigError):
        ScheduledTerms(LossTerms(), **wrong)


@pytest.mark.parametrize(
    ("terms", "signal", "said"),
    [
        (LossTerms(0, 1, "reverse_kl"), "sampled", "biased"),
        (LossTerms(0, 1, "forward_kl", 2.0), "sampled", "biased"),
        (LossTerms(EntropyDriven(0.0, 1.0), 1), "sampled", "entropy"),
        (LossTerms(0, 1, "reverse_kl", tail="renormalised"), "topk", "infinite"),
        (LossTerms(0, 1, tail="dropped"), "dense", "no tail"),
    ],
)
def test_combinations_without_meaning_are_refused(terms: LossTerms, signal: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_combination(terms, signal)  # type: ignore[arg-type]


def test_a_term_without_weight_is_not_judged() -> None:
    refuse_combination(LossTerms(1.0, 0.0, "reverse_kl"), "sampled")


def test_entropy_schedules_need_a_range() -> None:
    with pytest.raises(ConfigError, match="range"):
        EntropyDriven(0.0, 1.0, low=3.0, high=3.0)
