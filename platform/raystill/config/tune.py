"""`tune`: a search over the keys of one training stage. Trials train from the answers that are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raystill.config.general import Count, Fraction, Seed
from raystill.config.section import Section

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
WholePair = Annotated[list[int], Field(min_length=2, max_length=2)]


class Distribution(Section):
    """The values that a key may get; exactly one of the keys below is given."""

    choice: list[Any] | None = Field(None, description="One of these values, each as likely.")
    grid: list[Any] | None = Field(None, description="Each of these values, crossed with other grids.")
    uniform: Pair | None = Field(None, description="A number from low to high.")
    loguniform: Pair | None = Field(None, description="A number from low to high, evenly by magnitude.")
    randint: WholePair | None = Field(None, description="A whole number from low to high, both included.")


class TuneAsha(Section):
    """`tune.asha`: stops trials that are behind the others at the same share of the run."""

    grace: Fraction = Field(0.1, description="Share of the steps that every trial gets.")
    reduction_factor: Annotated[int, Field(ge=2, le=16)] = Field(
        3, description="One of so many trials goes on at each rung; rungs are as many times apart."
    )


class TunePbt(Section):
    """`tune.pbt`: weak trials go on from strong ones, with changed values."""

    every: Fraction = Field(
        0.2, description="Share of the steps between two comparisons; trials wait for one another there."
    )
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.25, description="Share of the trials that is replaced, and that is copied."
    )
    resample: float = Field(
        0.25, ge=0.0, le=1.0, description="Chance of a new draw instead of a step from the old value."
    )


class TuneResources(Section):
    """`tune.resources`: what a worker of a trial takes; a trial has `training.num_workers` of them.

    With the machine they decide how many trials run at once.
    """

    cpus: Count = Field(1, description="CPU cores and threads of a trial's worker.")
    gpus: Annotated[float, Field(ge=0.0)] | None = Field(
        None,
        description="GPUs of a trial's worker, for trials of one worker a share of one allowed; unset: 1 "
        "where training uses CUDA.",
    )


class TuneSection(Section):
    """`tune`: distributions on any key of a training stage, and how they are searched."""

    name: str = Field(
        "sweep",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        title="letters, digits, dots, dashes and underscores, at most 100, beginning with a letter or digit",
        description="Name of the sweep; its directory below the run's.",
    )
    stage: Literal["auto", "sft", "distill"] = Field(
        "auto", description="The stage that trials train; auto: distill where it is configured."
    )
    space: dict[str, Distribution] = Field(
        default_factory=dict, description="Dotted keys and the values that they may get."
    )
    num_samples: Count = Field(8, description="Trials; with grids, trials per combination.")
    metric: str = Field(
        "eval/ce",
        min_length=1,
        description="What trials are compared by: a name in metrics.jsonl. eval/ce means the same under "
        "every loss; eval/loss doesn't where loss weights differ.",
    )
    mode: Literal["min", "max"] = Field("min", description="Whether a small or a large metric is good.")
    search: Literal["random", "grid", "optuna"] = Field(
        "random", description="grid: every combination of choice and grid values; optuna: TPE, an extra."
    )
    scheduler: Literal["asha", "pbt", "none"] = Field("asha", description="Which trials end early.")
    asha: TuneAsha = Field(default_factory=TuneAsha)
    pbt: TunePbt = Field(default_factory=TunePbt)
    max_concurrent: Count | None = Field(
        None, description="At most so many trials at once; unset: as many as the resources allow."
    )
    seed: Seed = Field(0, description="Seed of the search; the trials' own is run.seed.")
    resources: TuneResources = Field(default_factory=TuneResources)
    report_every: Count | None = Field(
        None,
        description="Steps between two reports, each with a held-out loss and a checkpoint; unset: a tenth "
        "of the stage's steps where they are given, else its save_steps.",
    )
    max_gb: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Disk for all trials: above it the worst finished ones lose their checkpoints."
    )
