"""The configuration of a trial, from the sweep's and its own parameters. Pure."""

from __future__ import annotations

from typing import Any

from raystill.config.contradictions import find_contradictions
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.config.tune import TuneSection
from raystill.config.tune_contradictions import put_value
from raystill.errors import ConfigError
from raystill.train.settings import TrainStageName


def build_trial_config(base: Config, stage: TrainStageName, params: dict[str, Any]) -> Config:
    """The configuration of a trial: the base with its parameters, reports and threads.

    Raises ConfigError where the parameters contradict one another.
    """
    assert base.tune is not None
    plain = apply_params(base, params).model_dump(mode="json")
    section = plain["train"]["sft" if stage == "sft" else "distillation"]
    every = report_interval(base, stage)
    section["save_steps"] = section["logging_steps"] = every
    if base.tune.metric.startswith("eval/"):
        section["eval_strategy" if stage == "sft" else "evaluation_strategy"] = "steps"
    plain["training"]["cpus_per_worker"] = base.tune.resources.cpus
    return Config.model_validate(plain)


def apply_params(base: Config, params: dict[str, Any]) -> Config:
    """The base configuration with a trial's parameters and without the sweep; ConfigError if they clash."""
    plain = base.model_copy(update={"tune": None}).model_dump(mode="json")
    for path, value in params.items():
        plain = put_value(plain, path, value)
    config = Config.model_validate(plain)
    problems = find_contradictions(LoadedConfig(config))
    if problems:
        raise ConfigError(problems[0].what, problems[0].where, problems[0].fix, problems=tuple(problems))
    return config


def report_interval(config: Config, stage: TrainStageName) -> int:
    """Optimizer steps between two reports of a trial."""
    tune = config.tune or TuneSection()
    section = config.train.sft if stage == "sft" else config.train.distillation
    assert section is not None
    steps = section.steps or config.training.steps
    if tune.report_every is not None:
        return tune.report_every
    return max(1, steps // 10) if steps else section.save_steps or config.training.save_every
