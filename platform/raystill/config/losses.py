"""`losses`: what distillation minimises, and how its weights move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count
from raystill.config.section import Section

NonNegative = Annotated[float, Field(ge=0.0)]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Schedule(Section):
    """A value that moves over the steps, or with the teacher's entropy."""

    type: Literal["constant", "linear", "cosine", "entropy"] = Field(
        description="constant: start. linear, cosine: from start to end over the steps. entropy: per token, "
        "start where the teacher's entropy is at most low, end from high on, a straight line between.",
    )
    start: NonNegative = Field(description="First value.")
    end: NonNegative | None = Field(None, description="Last value; required but for constant.")
    steps: Count | None = Field(
        None, description="linear, cosine: optimizer steps until `end`; unset: fraction decides."
    )
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="linear, cosine: share of all steps until `end`."
    )
    low: NonNegative = Field(2.0, description="entropy: nats at which the value is `start`.")
    high: NonNegative = Field(8.0, description="entropy: nats at which the value is `end`.")


def largest(value: float | Schedule) -> float:
    """The most that a weight comes to."""
    if isinstance(value, Schedule):
        return max(value.start, value.start if value.end is None else value.end)
    return value


class HiddenAlignment(Section):
    """`losses.hidden`: the student's layers learn the states of a teacher in memory."""

    weight: Annotated[float, Field(gt=0.0)] = Field(0.1, description="Weight of the term.")
    type: Literal["mse", "cosine"] = Field(
        "mse", description="mse of normalised states, or 1 - cosine, after a learned projection."
    )
    layer_map: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = Field(
        None,
        description="Pairs [student layer, teacher layer], counted from 1; unset: every student layer, "
        "in proportion to the depths.",
    )


class LossesSection(Section):
    """`losses`: the terms of the distillation loss; a value here wins over knowledgedistillation.*."""

    divergence: Divergence = Field("forward_kl", description="Between teacher and student.")
    beta: OpenFraction = Field(0.5, description="jsd: the teacher's share of the mixture.")
    alpha: OpenFraction = Field(
        0.1, description="skew_*: share of its own first argument in the mixture it is compared with."
    )
    tail: Literal["bucket", "renormalised", "dropped"] = Field(
        "bucket",
        description="Mass outside the stored top k: one more outcome; scaled away; or left out of the sum. "
        "The last two are what others do, and biased.",
    )
    num_logprobs: Count | None = Field(
        None, description="Use only so many stored logprobs (a view); unset: all."
    )
    kl_weight: NonNegative | Schedule | None = Field(
        None, description="Weight of the KD term, or its schedule."
    )
    ce_weight: NonNegative | Schedule | None = Field(
        None, description="Weight of the teacher's tokens, or its schedule."
    )
    kd_temperature: Annotated[float, Field(gt=0.0, le=100.0)] | Schedule | None = Field(
        None, description="KD temperature, or its schedule."
    )
    balance: bool = Field(
        False,
        description="Scale the KD term to the running magnitude of the cross entropy before it is weighted.",
    )
    source_weights: dict[str, NonNegative] = Field(
        default_factory=dict,
        description="Weight of every token of the rows from a prompt source, by its name; sources that are "
        "not named have 1. What a step divides its loss by stays the number of its tokens.",
    )
    hidden: HiddenAlignment | None = Field(None, description="Hidden states of an online teacher as targets.")
