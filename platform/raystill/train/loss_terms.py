"""The terms of the distillation loss, resolved once from the configuration. Pure."""

from __future__ import annotations

from raystill.config.losses import LossesSection, Schedule
from raystill.config.schema import Config
from raystill.config.signal_source import resolve_signal_source
from raystill.config.training import DistillationSection
from raystill.errors import ConfigError
from raystill.losses.schedules import Ramp, ScheduledTerms
from raystill.losses.schedules import Schedule as LossSchedule
from raystill.losses.terms import EntropyDriven, LossTerms, Signal, refuse_combination


def resolve_loss(config: Config) -> ScheduledTerms:
    """The terms of the distillation loss.

    losses.kl_weight and losses.ce_weight where given, else knowledgedistillation.weight w as kl = w and
    ce = 1 - w; the temperature likewise. Raises ConfigError for weights that train nothing, for a reduction
    that isn't per token, for a KD term without a signal, and for one that its signal can't carry.
    """
    losses = config.losses
    distillation = config.train.distillation or DistillationSection()
    kd = distillation.knowledgedistillation
    if kd.loss.reduction not in ("batchmean", "mean"):
        raise ConfigError(
            f"reduction {kd.loss.reduction} would make the step size depend on the batch",
            where="train.distillation.knowledgedistillation.loss.reduction",
            fix="use batchmean: the mean over completion tokens",
        )
    terms = _resolve_terms(losses, kd.weight, kd.loss.temperature)
    if not terms.uses_teacher:
        return terms
    source = resolve_signal_source(config)
    if source == "store":
        _require_stored(config)
    elif source == "on_policy":
        _require_no_ce(terms)
    for end in terms.ends:
        refuse_combination(end, signal_of(config))
    return terms


def signal_of(config: Config) -> Signal:
    """The kind of signal that the KD term gets."""
    if resolve_signal_source(config) == "store":
        return config.teacher.signals.kind
    distillation = config.train.distillation
    return "topk" if distillation is not None and distillation.teacher.num_logprobs else "dense"


def _resolve_terms(losses: LossesSection, kd_share: float, kd_temperature: float) -> ScheduledTerms:
    given = {
        "ce_weight": losses.ce_weight if losses.ce_weight is not None else 1.0 - kd_share,
        "kl_weight": losses.kl_weight if losses.kl_weight is not None else kd_share,
        "kd_temperature": losses.kd_temperature if losses.kd_temperature is not None else kd_temperature,
    }
    moving = {name: _schedule(name, value) for name, value in given.items() if isinstance(value, Schedule)}
    constant = {name: float(value) for name, value in given.items() if not isinstance(value, Schedule)}
    # What a schedule replaces at every step only has to be valid.
    placeholders = {name: 1.0 for name in moving}
    terms = LossTerms(
        **constant,
        **placeholders,
        divergence=losses.divergence,
        beta=losses.beta,
        alpha=losses.alpha,
        tail=losses.tail,
    )
    return ScheduledTerms(terms, **moving)


def _schedule(name: str, given: Schedule) -> LossSchedule:
    if given.type == "constant":
        return given.start
    if given.end is None:
        raise ConfigError(
            f"a {given.type} schedule without its last value goes nowhere",
            where=f"losses.{name}.end",
            fix="give end, or set type: constant",
        )
    if given.type == "entropy":
        return EntropyDriven(given.start, given.end, given.low, given.high)
    return Ramp(given.type, given.start, given.end, given.steps, given.fraction)


def _require_stored(config: Config) -> None:
    """The store must hold what the KD term reads."""
    kind, stored = config.teacher.signals.kind, config.teacher.signals.num_logprobs
    wanted = config.losses.num_logprobs
    if kind != "topk":
        if wanted is not None:
            raise ConfigError(
                f"losses.num_logprobs is a view of a top k, and {kind} signals are stored",
                where="losses.num_logprobs, teacher.signals.kind",
                fix="remove it, or set teacher.signals.kind: topk",
            )
        return
    if stored == 0:
        raise ConfigError(
            "the KD term has a weight, and no logprobs are stored",
            where="teacher.signals.num_logprobs",
            fix="store logprobs (20 is a good number), set losses.kl_weight to 0, or let a model teach in "
            "process: train.distillation.teacher.source: online",
        )
    if wanted is not None and wanted > stored:
        raise ConfigError(
            f"losses.num_logprobs is {wanted}, and {stored} are stored",
            where="losses.num_logprobs",
            fix=f"use at most {stored}, or store more with teacher.signals.num_logprobs",
        )


def _require_no_ce(terms: ScheduledTerms) -> None:
    """Cross entropy on its own samples would teach a student to repeat itself."""
    if any(end.uses_cross_entropy for end in terms.ends):
        raise ConfigError(
            f"the CE term has weight {terms.describe()['ce_weight']}, and its targets would be the student's "
            "own tokens",
            where="losses.ce_weight, train.distillation.teacher.source",
            fix="set losses.ce_weight: 0 and losses.kl_weight: 1 for on_policy",
        )
