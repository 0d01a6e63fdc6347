from __future__ import annotations

from typing import Any

import pytest

from raystill.errors import ConfigError
from raystill.losses.terms import LossTerms
from raystill.train.loss_terms import resolve_loss
from raystill.train.optimizer import build_optimizer, learning_rate_at
from raystill.train.settings import resolve_settings, starts_from_sft


def test_the_seeds_weight_means_kl_and_the_rest_ce(empty_world: Any) -> None:
    kd = {"weight": 0.3, "loss": {"temperature": 2.0}}
    config = empty_world.config(train={"distillation": {"knowledgedistillation": kd}})
    assert resolve_loss(config).at(0, 9) == LossTerms(ce_weight=0.7, kl_weight=0.3, kd_temperature=2.0)


def test_the_losses_section_wins(empty_world: Any) -> None:
    losses = {"kl_weight": 2.0, "ce_weight": 0.0, "kd_temperature": 1.5, "divergence": "reverse_kl"}
    terms = resolve_loss(empty_world.config(losses=losses))
    assert terms.at(0, 9) == LossTerms(0.0, 2.0, "reverse_kl", 1.5)


@pytest.mark.parametrize(
    "sections",
    [
        {"losses": {"kl_weight": 0.0, "ce_weight": 0.0}},
        {"losses": {"num_logprobs": 6}},
        {"teacher": {"signals": {"num_logprobs": 0}}},
        {"train": {"distillation": {"knowledgedistillation": {"loss": {"reduction": "sum"}}}}},
    ],
)
def test_losses_that_mean_nothing_are_refused(empty_world: Any, sections: dict[str, Any]) -> None:
    """I30."""
    with pytest.raises(ConfigError):
        resolve_loss(empty_world.config(**sections))


def test_stage_steps_win_over_training_steps_over_epochs(empty_world: Any) -> None:
    own = resolve_settings(empty_world.config(train={"sft": {"steps": 7}}), "sft")
    shared = resolve_settings(empty_world.config(), "sft")
    epochs = resolve_settings(
        empty_world.config(training={"steps": None}, train={"sft": {"num_train_epochs": 3}}), "sft"
    )
    assert [s.total_steps(20) for s in (own, shared, epochs)] == [7, 6, 9]


def test_the_stages_own_intervals_win(empty_world: Any) -> None:
    config = empty_world.config(train={"sft": {"logging_steps": 3, "save_steps": 4}})
    sft, distill = resolve_settings(config, "sft"), resolve_settings(config, "distill")
    assert (sft.log_every, sft.save_every) == (3, 4) and (distill.log_every, distill.save_every) == (2, 2)


def test_a_missing_stage_is_named(empty_world: Any) -> None:
    config = empty_world.config()
    without = config.model_copy(update={"train": config.train.model_copy(update={"sft": None})})
    with pytest.raises(ConfigError, match="sft"):
        resolve_settings(without, "sft")
    with pytest.raises(ConfigError):
        starts_from_sft(
            without.model_copy(
                update={
                    "train": without.train.model_copy(
                        update={"distillation": config.train.distillation.model_copy(update={"init": "sft"})}  # type: ignore[union-attr]
                    )
                }
            )
        )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_then_falls_to_its_floor(empty_world: Any, schedule: str) -> None:
    training = {"lr_schedule": schedule, "warmup_ratio": 0.1, "min_lr_ratio": 0.2}
    settings = resolve_settings(empty_world.config(training=training), "sft")
    rates = [learning_rate_at(settings, step, 100) for step in range(101)]
    assert 0 < rates[0] < rates[9] < rates[10] == settings.learning_rate
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    floor = settings.learning_rate * (1.0 if schedule == "constant" else 0.2)
    assert rates[100] == pytest.approx(floor)


def test_weight_decay_is_for_matrices_only(empty_world: Any) -> None:
    import torch

    settings = resolve_settings(empty_world.config(training={"weight_decay": 0.1}), "sft")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    groups = build_optimizer(model, settings).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [
        (0.1, [2]),
        (0.0, [1, 1, 1]),
    ]
