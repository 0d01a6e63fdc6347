"""From the config's losses to terms, and what they do in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raystill.config.losses import Divergence
from raystill.errors import ConfigError
from raystill.losses.terms import DIVERGENCES, EntropyDriven, LossTerms
from raystill.store.identity import partition_of
from raystill.store.store import load_store
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind, TierSignal
from raystill.store.writer import PartWriter
from raystill.train.loss_terms import resolve_loss

D = 16


def test_every_divergence_of_the_config_is_one_that_the_kernel_has() -> None:
    assert get_args(Divergence) == DIVERGENCES


def test_schedules_of_the_config_become_terms(empty_world: Any) -> None:
    losses = {
        "divergence": "jsd",
        "beta": 0.3,
        "kl_weight": {"type": "linear", "start": 0.0, "end": 1.0, "steps": 3},
        "ce_weight": {"type": "constant", "start": 0.5},
        "kd_temperature": {"type": "cosine", "start": 3.0, "end": 1.0, "fraction": 0.5},
    }
    terms = resolve_loss(empty_world.config(losses=losses))
    assert terms.at(0, 10) == LossTerms(0.5, 0.0, "jsd", 3.0, beta=0.3)
    assert terms.at(1, 10).kl_weight == 0.5 and 1.0 < float(str(terms.at(2, 10).kd_temperature)) < 3.0
    assert terms.last == LossTerms(0.5, 1.0, "jsd", 1.0, beta=0.3)
    driven = {"type": "entropy", "start": 1.0, "end": 0.5, "low": 1.0, "high": 4.0}
    found = resolve_loss(empty_world.config(losses={"ce_weight": driven}))
    assert found.at(3, 10).ce_weight == EntropyDriven(1.0, 0.5, 1.0, 4.0)


@pytest.mark.parametrize(
    ("losses", "signals", "said"),
    [
        ({"kl_weight": {"type": "linear", "start": 1.0}}, {}, "goes nowhere"),
        ({"divergence": "reverse_kl"}, {"kind": "sampled"}, "biased"),
        ({"divergence": "reverse_kl", "tail": "renormalised"}, {}, "infinite"),
        ({"tail": "dropped"}, {"kind": "hidden"}, "no tail"),
        ({"num_logprobs": 3}, {"kind": "sampled"}, "view of a top k"),
    ],
)
def test_what_a_signal_cannot_carry_is_refused(
    empty_world: Any, losses: dict[str, Any], signals: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_loss(empty_world.config(losses=losses, teacher={"signals": signals}))


def test_a_run_moves_its_weights_and_balances_its_terms(world: Any) -> None:
    losses = {
        "divergence": "skew_forward_kl",
        "balance": True,
        "kl_weight": {"type": "linear", "start": 0.0, "end": 1.0},
        "ce_weight": 0.5,
    }
    whole = world.config("whole", losses=losses)
    world.train(whole)
    lines = [line for line in world.metrics(whole) if "train/loss" in line]
    for line in lines:
        assert line["train/loss"] == pytest.approx(line["train/ce_weighted"] + line["train/kd_weighted"])
        assert line["train/ce_weighted"] == pytest.approx(0.5 * line["train/ce"])
    assert lines[-1]["train/kd_weighted"] > 3 * lines[-1]["train/kd_kl"]  # brought up to the cross entropy


def test_the_teachers_doubt_moves_weights_token_by_token(world: Any) -> None:
    driven = {"type": "entropy", "start": 1.0, "end": 0.5, "low": 0.2, "high": 1.0}
    config = world.config(
        losses={"ce_weight": driven, "kl_weight": 1.0}, training={"steps": 2, "log_every": 1}
    )
    world.train(config)
    for line in world.metrics(config):
        if "train/ce" in line:
            assert 0.5 * line["train/ce"] < line["train/ce_weighted"] < line["train/ce"]


def add_tier(world: Any, rows: Any, kind: TierKind) -> None:
    """A tier that says what the rows' top k says, as far as it can."""
    generator = np.random.default_rng(1)
    store = load_store(world.root / "store")
    with PartWriter(store) as writer:
        for partition in range(2):
            found: list[tuple[str, TierSignal]] = []
            for row in rows:
                length = len(row.completion_token_ids)
                if partition_of(row.key, 2) != partition:
                    continue
                if kind == "hidden":
                    states = generator.normal(size=(length, D)).astype(np.float16)
                    found.append((row.key, HiddenSignal(states)))
                    continue
                found.append(
                    (
                        row.key,
                        SampledSignal(
                            10,
                            np.ones(length, np.int32),
                            row.completion_token_ids,
                            np.full(length, 10, np.uint16),
                            np.full(length, -0.1, np.float32),
                        ),
                    )
                )
            writer.commit_tier(partition, kind, found)


def test_draws_that_always_hit_the_token_train_like_cross_entropy(world: Any, rows: Any) -> None:
    add_tier(world, rows, "sampled")
    signals = {"signals": {"kind": "sampled", "num_draws": 10}}
    drawn = world.config("drawn", teacher=signals, losses={"kl_weight": 1.0, "ce_weight": 0.0})
    plain = world.config("plain", losses={"kl_weight": 0.0, "ce_weight": 1.0})
    ours = world.train(drawn)["metrics"]["final_train_kd_kl"]
    assert ours == pytest.approx(world.train(plain)["metrics"]["final_train_ce"], rel=1e-4)


def test_stored_hidden_states_teach_through_the_teachers_head(world: Any, rows: Any, tmp_path: Path) -> None:
    add_tier(world, rows, "hidden")
    head = torch.randn(len(world.chat.tokenizer) + 5, D, generator=torch.Generator().manual_seed(0))
    place = tmp_path / "teacher"
    place.mkdir()
    save_file({"lm_head.weight": head}, place / "model.safetensors")
    (place / "config.json").write_text("{}", encoding="utf-8")
    teacher = {"signals": {"kind": "hidden"}, "open": {"model": {"save_path": str(place)}}}
    config = world.config(teacher=teacher, losses={"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "jsd"})
    summary = world.train(config)
    assert summary["counts"]["rows_train"] > 0
    lines = [line["train/kd_kl"] for line in world.metrics(config) if "train/kd_kl" in line]
    assert 0 < lines[-1] < lines[0]


def test_rows_without_the_tier_are_left_out_and_counted(world: Any, rows: Any) -> None:
    add_tier(world, rows[:30], "sampled")
    signals = {"signals": {"kind": "sampled", "num_draws": 10}}
    config = world.config(teacher=signals, losses={"kl_weight": 1.0, "ce_weight": 0.0})
    counts = world.train(config)["counts"]
    assert counts["left_out_unscored"] > 0
    assert counts["rows_read"] + counts["left_out_unscored"] == sum(row.split == "train" for row in rows)


def test_kd_with_cross_entropy_alone_is_sft_bit_for_bit(world: Any) -> None:
    alone = {"kl_weight": 0.0, "ce_weight": 1.0}
    config = world.config(train={"sft": {"dataset": {"seed": 42}}}, losses=alone)
    world.train(config, "sft")
    world.train(config, "distill")
    assert world.weights(config, "sft") == world.weights(config, "distill")
