"""A sweep against Ray Tune's naive pattern: the same LoRA trials, from the same stored answers.

Ours is `raystill tune`: trials run flat, in processes that stay, as many at once as there are cores, and
share encoded rows. The peers are what Ray's documentation shows for distributed training under Tune: every
trial is a driver of its own that starts a TorchTrainer with one worker (1 CPU), which loads everything. Where
drivers take Ray's default of 1 CPU, one trial trains at a time on two cores; where they reserve no CPU, as
many train at once as with us. The goal holds against both. All train by the same loop with the same threads,
so losses are equal.

Wall time is that of the whole search with Ray's start, in a process of its own. A trial's training lies
between its milestones at 10 % and 100 %; overhead per trial is what the wall time holds besides training.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raystill.bench.own_process import run_in_own_process
from raystill.bench.result import BenchRow, bench_result
from raystill.bench.taught_run import taught_run
from raystill.config.load import load_config
from raystill.pipeline import run_pipeline

WALL_GOAL, LOSS_GOAL = 1 / 3, 1e-6
OURS, PEERS = "ours", ("nested TorchTrainer", "nested, idle drivers")
_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Sizes:
    """How much is searched: trials are ranks times learning rates; steps of a trial, rows of the store."""

    ranks: tuple[int, ...] = (8, 16)
    rates: tuple[float, ...] = _RATES
    steps: int = 48
    prompts: int = 1200
    peers: tuple[str, ...] = PEERS

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return len(self.ranks) * len(self.rates)


QUICK = Sizes(ranks=(8,), rates=_RATES[1:3], steps=20, prompts=200, peers=PEERS[1:])


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """Store answers of the fake engine once, then every side in turn. Minutes; `quick`: two short trials.

    Raises EnvironmentFault where a side fails.
    """
    return bench_result("sweep", measure(QUICK if quick else Sizes()))


def measure(sizes: Sizes) -> list[BenchRow]:
    """The benchmark's rows; scratch files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="raystill-sweep-") as scratch:
        config = write_config(Path(scratch), sizes)
        run_pipeline(load_config([config]), until="generate")
        found = {
            side: run_in_own_process("raystill.bench.sweep_sides", [side, str(config)])
            for side in (OURS, *sizes.peers)
        }
    return compare(sizes, found)


def write_config(directory: Path, sizes: Sizes) -> Path:
    """The configuration of the run and of its sweep, as a file in `directory`."""
    lora = "train.distillation.peft.lora.r"
    values = taught_run(directory, "sweep", sizes.prompts, min(100, sizes.prompts // 4)) | {
        "student": {
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256,
        },
        "training": {"max_seq_len": 256, "checkpoint_cleanup": {"min_free_space_gb": 0.0}},
        "train": {
            "distillation": {
                "init": "student", "steps": sizes.steps, "per_device_train_batch_size": 16,
                "peft": {"lora": {"r": sizes.ranks[0]}},
            }
        },
        "tune": {
            "stage": "distill", "metric": "eval/loss", "mode": "min", "search": "grid", "scheduler": "none",
            "report_every": max(1, sizes.steps // 4), "num_samples": 1,
            "space": {
                lora: {"grid": list(sizes.ranks)},
                "train.distillation.learning_rate": {"grid": list(sizes.rates)},
            },
        },
    }  # fmt: skip
    path = directory / "sweep.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def compare(sizes: Sizes, found: dict[str, dict[str, Any]]) -> list[BenchRow]:
    """Rows from what each side says: `wall_s`, `concurrent`, and by trial `losses` and `train_s`."""
    ours, rows = found[OURS], []
    middle = sorted(ours["train_s"].values())[sizes.trials // 2]
    case = f"{sizes.trials} LoRA trials of {middle:.0f} s"
    for peer in sizes.peers:
        theirs = found[peer]
        ratio = ours["wall_s"] / theirs["wall_s"]
        goal, met = f"<= {WALL_GOAL:.2f}", ratio <= WALL_GOAL
        rows.append(BenchRow(case, "wall, s", ours["wall_s"], theirs["wall_s"], peer, ratio, goal, met))
        mine, other = overhead_seconds(ours), overhead_seconds(theirs)
        rows.append(
            BenchRow(case, "overhead per trial, s", mine, other, peer, mine / other, "< 1", mine < other)
        )
        gap = largest_gap(ours["losses"], theirs["losses"])
        rows.append(
            BenchRow(
                case, "largest loss difference", gap, None, peer, None, f"<= {LOSS_GOAL:g}", gap <= LOSS_GOAL
            )
        )
    return rows


def overhead_seconds(side: dict[str, Any]) -> float:
    """Wall time per trial that isn't training, with as many trials at once as the side had."""
    trained = math.fsum(side["train_s"].values())
    return float((side["wall_s"] - trained / side["concurrent"]) / len(side["train_s"]))


def largest_gap(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest relative difference of a trial's last loss; infinite where trials are missing."""
    if ours.keys() != theirs.keys():
        return math.inf
    return max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in ours)
