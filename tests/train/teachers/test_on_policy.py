"""Rollouts in training: made from the weights of their step, the same after any interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystill.checkpoint.store import latest_valid, load_checkpoint
from raystill.errors import ConfigError
from raystill.run.paths import RunPaths
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

RUN_IN_CHILD = """
import sys
from pathlib import Path
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

class Silent:
    def report(self, step, metrics): pass

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
train_worker(TrainJob(config, RunPaths.from_config(config), "distill", "cpu", 1), WorkerGroup(), Silent())
"""


class StopError(Exception):
    """Ends a run from within."""


class StopAfter:
    """A reporter that ends the run after a number of saves."""

    def __init__(self, saves: int) -> None:
        self.left = saves

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise StopError


def on_policy(world: Any, name: str = "run", **rollouts: Any) -> Any:
    """The student's first weights judge its rollouts; the student starts elsewhere, by SFT's first step."""
    settings = {"max_new_tokens": 8, "share": 0.5, "sync_every": 4, "batch_size": 16, **rollouts}
    teacher = {"source": "on_policy", "models": [{"name": world.judge}], "rollouts": settings}
    return world.config(
        name=name,
        train={"distillation": {"teacher": teacher}},
        losses={"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "reverse_kl"},
        training={"steps": 6, "save_every": 2, "log_every": 1},
        trackers={"trl_names": True},
    )


@pytest.fixture
def judged(world: Any) -> Any:
    config = world.config(name="judge", run={"seed": 5}, training={"steps": 1})
    world.train(config, "sft")
    world.judge = str(world.paths(config).model("sft"))
    return world


def test_a_run_stopped_inside_a_window_ends_byte_equal(judged: Any) -> None:
    whole, stopped = on_policy(judged, "whole"), on_policy(judged, "stopped")
    judged.train(whole)
    with pytest.raises(StopError):
        train_worker(judged.job(stopped), WorkerGroup(), StopAfter(1))
    checkpoint = latest_valid(judged.paths(stopped).checkpoints("distill")).path
    assert checkpoint is not None
    assert "source" in load_checkpoint(checkpoint).tensors  # the window goes on after step 2
    judged.train(stopped)
    assert judged.weights(stopped) == judged.weights(whole)
    share = [line["rollout/share"] for line in judged.metrics(whole) if "rollout/share" in line]
    assert 0.0 < sum(share) / len(share) < 1.0
    for line in judged.metrics(whole):
        if "rollout/tokens" in line:
            assert 1.0 <= line["rollout/tokens"] <= 8.0
            assert 0.0 <= line["rollout/ended"] <= 1.0
            assert line["completions/clipped_ratio"] == 1.0 - line["rollout/ended"]
    assert any(line.get("time/rollout", 0.0) > 0 for line in judged.metrics(whole))
    stale = [line["rollout/staleness"] for line in judged.metrics(whole) if "rollout/staleness" in line]
    assert stale == [0, 1, 2, 3, 0, 1]


def test_kill_9_between_windows_ends_byte_equal(judged: Any, tmp_path: Path) -> None:
    whole, killed = on_policy(judged, "whole", sync_every=1), on_policy(judged, "killed", sync_every=1)
    judged.train(whole)
    judged.job(killed)
    path = tmp_path / "config.json"
    path.write_text(killed.model_dump_json())
    environment = dict(os.environ, RAYSTILL_FAILPOINT="train:step:5")
    child = subprocess.run([sys.executable, "-c", RUN_IN_CHILD, str(path)], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    # Checkpoints are written behind the steps: the newest whole one is at most a few steps old.
    assert latest_valid(RunPaths.from_config(killed).checkpoints("distill")).step in range(1, 5)
    judged.train(killed)
    assert judged.weights(killed) == judged.weights(whole)


def test_the_rows_of_a_step_are_rollouts_of_its_prompts(judged: Any) -> None:
    config = on_policy(judged, share=1.0, sync_every=1)
    run = assemble(judged.job(config), WorkerGroup())
    work = run.source.work(0)
    planned = [int(row) for rows in run.planner.plan(0, 0).micro_batches for row in rows]
    eos = judged.chat.turn_end_id
    for place, row in enumerate(planned):
        prompt = run.data.train.tokens(row)[: run.data.train.first_target(row)]
        tokens = work.examples.tokens(place)
        assert tokens[: len(prompt)].tolist() == prompt.tolist()
        rollout = tokens[len(prompt) :]
        assert 1 <= len(rollout) <= 8
        assert eos not in rollout[:-1]
    assert work.plan.num_tokens == int(work.examples.num_loss_tokens.sum())
    again = assemble(judged.job(config), WorkerGroup()).source.work(0)
    assert again.examples.tokens(0).tolist() == work.examples.tokens(0).tolist()


def test_learning_from_rollouts_brings_the_student_closer(judged: Any) -> None:
    config = on_policy(judged, share=1.0, sync_every=2)
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"steps": 30, "save_every": 30})}
    )
    judged.train(config)
    losses = [line["train/loss"] for line in judged.metrics(config) if "train/loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_cross_entropy_on_its_own_samples_is_refused(judged: Any) -> None:
    config = on_policy(judged)
    config = config.model_copy(update={"losses": config.losses.model_copy(update={"ce_weight": 0.5})})
    with pytest.raises(ConfigError, match="own tokens"):
        assemble(judged.job(config), WorkerGroup())


def test_tokens_of_the_prompt_that_carry_loss_keep_it(judged: Any) -> None:
    """With loss on earlier assistant turns the divisor counts them beside a rollout, too."""
    config = on_policy(judged, share=1.0, sync_every=1)
    run = assemble(judged.job(config), WorkerGroup())
    examples = run.data.train
    examples._prompt_targets = np.full(len(examples), 1, dtype=np.int64)
    examples._target_offsets = np.arange(len(examples) + 1, dtype=np.int64)
    work = run.source.work(0)
    assert work.examples.target_places(0)[0] == 1
    assert work.plan.num_tokens == int(work.examples.num_loss_tokens.sum())
