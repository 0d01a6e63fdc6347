"""What a cluster takes until it works: a submitted job, nodes that come and go, and a node that is killed.

Everything runs on this machine, against Ray's own programs with token authentication: a head for jobs, and
for the rest a head without CPUs whose autoscaler (v2) adds a node of one CPU, a real raylet that a fake
provider starts at once. So the figures are what the software takes; a cloud's machine comes on top. The
teacher is the fake engine, which gives a row after a fixed time. Beside each figure stands the least that Ray
itself takes: a submitted script that only prints, tasks that only sleep, a Ray Train loop that only counts.

A killed node loses all its processes at one moment (SIGKILL). Its row or step is useful if nobody had made it
before. What a head and its autoscaler take to start is not counted: a job, or a node, comes before the first
round.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from raystill.bench.cluster_growth import TASKS, TRAIN, measure_growth, measure_training_loss
from raystill.bench.cluster_submit import PRINTING, measure_submits
from raystill.bench.result import BenchRow, bench_result
from raystill.testing.growing_cluster import IDLE_SECONDS

OURS = "ours"
# Every figure by side and metric, one value per round.
Found = dict[str, dict[str, list[float]]]
_RECORDED = "recorded"
_SUBMIT = "job on a head that is there"
_GROW = "cluster without a node"
_LOSS = "the only node killed"
_ROWS = (
    (_SUBMIT, "submit to the job's first words, s", "first_words_s", PRINTING, "first_words_s"),
    (_SUBMIT, "submit to the first committed row, s", "first_row_s", PRINTING, "first_words_s"),
    (_GROW, "start of the driver to the first node, s", "first_node_s", TASKS, "first_node_s"),
    (_GROW, "start of the driver to the first committed row, s", "first_row_s", TASKS, "first_row_s"),
    (
        _GROW, f"last row to no node, idle timeout {IDLE_SECONDS:g} s, s", "drain_s", TASKS, "drain_s",
    ),
    (_LOSS, "kill -9 to the next committed row, s", "next_row_s", TASKS, "next_row_s"),
    (_LOSS, "kill -9 to the next new step, s", "next_step_s", TRAIN, "next_step_s"),
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How often every side takes its turn; whether nodes are killed."""

    rounds: int = 3
    kills: bool = True


QUICK = Sizes(rounds=1, kills=False)


def run_bench(*, quick: bool = False) -> dict[str, Any]:
    """All sides in turns, medians of the rounds. Ten minutes on two cores; `quick`: once, nothing is killed.

    Raises EnvironmentFault where a side fails or a head doesn't answer.
    """
    return bench_result("cluster", measure(QUICK if quick else Sizes()))


def measure(sizes: Sizes) -> list[BenchRow]:
    """The benchmark's rows; clusters and scratch files are gone afterwards."""
    rows = compare(_SUBMIT, measure_submits(sizes.rounds))
    rows += compare(_GROW, found := measure_growth(sizes.rounds, kills=sizes.kills))
    if sizes.kills:
        rows += compare(_LOSS, found)
        rows += compare(_LOSS, measure_training_loss(sizes.rounds))
    return rows


def compare(case: str, found: Found) -> list[BenchRow]:
    """The rows of `case` for which `found` has figures; nothing is asked of them but to be printed."""
    rows = []
    for one, metric, key, peer, peer_key in _ROWS:
        if one != case or key not in found[OURS] or peer not in found:
            continue
        ours, theirs = statistics.median(found[OURS][key]), statistics.median(found[peer][peer_key])
        rows.append(BenchRow(case, metric, ours, theirs, peer, ours / theirs, _RECORDED, True))
    return rows
