"""Which terms a training loss has, and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from raystill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
Tail = Literal["bucket", "renormalised", "dropped"]
Signal = Literal["topk", "sampled", "hidden", "dense"]


@dataclass(frozen=True)
class EntropyDriven:
    """A value per token, driven by the teacher's entropy H there, in nats.

    r = clamp((H - low) / (high - low), 0, 1); the value is start + (end - start) * r. For a top-k teacher H
    is the entropy of its coarse outcomes, which never exceeds that of its whole distribution. Being a
    function of the token alone, it doesn't depend on how rows are cut into batches.
    """

    start: float
    end: float
    low: float = 2.0
    high: float = 8.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                f"an entropy schedule from {self.low} to {self.high} nats has no range",
                where="losses.*.low, losses.*.high",
                fix="give high a value above low",
            )

    def at(self, entropy_N: Tensor) -> Tensor:
        """The value per token."""
        share_N = ((entropy_N - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return self.start + (self.end - self.start) * share_N


Value = float | EntropyDriven


@dataclass(frozen=True)
class LossTerms:
    """loss = ce_weight * CE + kl_weight * kd_temperature^2 * divergence(teacher, student), per token.

    `divergence` compares the distributions tempered by `kd_temperature`; `beta` belongs to jsd, `alpha` to
    the skewed ones (see `divergences`). `tail` says what a top-k teacher's remaining mass is (`coarse`).
    Raises ConfigError for weights or a temperature that train nothing.
    """

    ce_weight: Value = 1.0
    kl_weight: Value = 0.0
    divergence: Divergence = "forward_kl"
    kd_temperature: Value = 1.0
    beta: float = 0.5
    alpha: float = 0.1
    tail: Tail = "bucket"

    def __post_init__(self) -> None:
        _check_weights(self)
        if smallest(self.kd_temperature) <= 0:
            raise ConfigError(
                f"a KD temperature of {smallest(self.kd_temperature)} has no distribution",
                where="losses.kd_temperature",
                fix="use a value above 0, for example 1.0",
            )
        if not 0.0 < self.beta < 1.0:
            raise ConfigError(
                f"jsd with beta {self.beta} has no gradient",
                where="losses.beta",
                fix="use a value between 0 and 1; the ends are forward_kl and reverse_kl",
            )
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError(
                f"a skew of alpha {self.alpha} is no mixture",
                where="losses.alpha",
                fix="use a value between 0 and 1, for example 0.1",
            )

    @property
    def uses_teacher(self) -> bool:
        """Whether the divergence has a weight anywhere."""
        return largest(self.kl_weight) > 0

    def scaled(self, kl_factor: float) -> LossTerms:
        """The same terms with the divergence's weight times `kl_factor`."""
        if kl_factor == 1.0:
            return self
        weight = self.kl_weight
        if isinstance(weight, EntropyDriven):
            ends = {"start": weight.start * kl_factor, "end": weight.end * kl_factor}
            return replace(self, kl_weight=replace(weight, **ends))
        return replace(self, kl_weight=weight * kl_factor)

    @property
    def uses_cross_entropy(self) -> bool:
        """Whether the cross entropy has a weight anywhere."""
        return largest(self.ce_weight) > 0

    @property
    def needs_entropy(self) -> bool:
        """Whether a value depends on the teacher's entropy."""
        values = (self.ce_weight, self.kl_weight, self.kd_temperature)
        return any(isinstance(value, EntropyDriven) for value in values)


def smallest(value: Value) -> float:
    """The least that `value` can be."""
    return min(value.start, value.end) if isinstance(value, EntropyDriven) else value


def largest(value: Value) -> float:
    """The most that `value` can be."""
    return max(value.start, value.end) if isinstance(value, EntropyDriven) else value


def refuse_combination(terms: LossTerms, signal: Signal) -> None:
    """Raise ConfigError where the divergence is undefined or biased on this kind of teacher signal."""
    found = _wrong_with(terms, signal) if terms.uses_teacher else None
    if found is not None:
        what, where, fix = found
        raise ConfigError(what, where=where, fix=fix)


def _wrong_with(terms: LossTerms, signal: Signal) -> tuple[str, str, str] | None:
    if signal == "sampled":
        if terms.divergence != "forward_kl":
            return (
                f"{terms.divergence} isn't linear in the teacher's probabilities, so its estimate from draws "
                "is biased",
                "losses.divergence",
                "use forward_kl with sampled signals, or store topk",
            )
        if terms.kd_temperature != 1.0:
            return (
                f"draws made at temperature 1 give a biased estimate at {terms.kd_temperature}",
                "losses.kd_temperature",
                "use 1.0 with sampled signals, or store topk or hidden",
            )
        if terms.needs_entropy:
            return (
                "the entropy of a few draws is far below the teacher's, so nothing can be driven by it",
                "losses.ce_weight, losses.kl_weight",
                "use another schedule with sampled signals, or store topk",
            )
    if signal == "topk" and terms.tail == "renormalised" and terms.divergence == "reverse_kl":
        return (
            "reverse_kl is infinite where the teacher's mass outside the top k is renormalised away",
            "losses.tail",
            "use tail: bucket, or skew_reverse_kl",
        )
    if signal != "topk" and terms.tail != "bucket":
        return (
            f"tail: {terms.tail} is about a top k, and {signal} signals have no tail",
            "losses.tail",
            "remove it, or store topk",
        )
    return None


def _check_weights(terms: LossTerms) -> None:
    weights = (terms.ce_weight, terms.kl_weight)
    if min(map(smallest, weights)) < 0 or max(map(largest, weights)) == 0:
        ce, kl = weights
        raise ConfigError(
            f"loss weights ce={ce} and kl={kl} train nothing",
            where="losses.ce_weight, losses.kl_weight",
            fix="give at least one of them a value above 0, and none below",
        )
