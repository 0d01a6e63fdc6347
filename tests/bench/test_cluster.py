"""`bench cluster`: what it sets side by side, and how it reads what a run and a peer left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from raystill.bench.cluster import OURS, QUICK, Sizes, compare
from raystill.bench.cluster_growth import TASKS, TRAIN, times_in
from raystill.bench.cluster_submit import PRINTING, first_event, part_times


def test_every_figure_stands_beside_the_least_that_ray_takes() -> None:
    jobs = {OURS: {"first_words_s": [9.0, 8.0, 10.0], "first_row_s": [20.0, 22.0, 24.0]},
            PRINTING: {"first_words_s": [4.0, 5.0, 3.0]}}  # fmt: skip
    words, row = compare("job on a head that is there", jobs)
    assert (words.ours, words.peer, words.ratio, words.met) == (9.0, 4.0, 2.25, True)
    assert (row.ours, row.peer, row.peer_name) == (22.0, 4.0, PRINTING)
    grown = {"first_node_s": [6.0], "first_row_s": [12.0], "next_row_s": [30.0], "drain_s": [8.0]}
    nodes = {OURS: grown, TASKS: {name: [value[0] / 2] for name, value in grown.items()}}
    assert [row.ours for row in compare("cluster without a node", nodes)] == [6.0, 12.0, 8.0]
    assert [row.ours for row in compare("the only node killed", nodes)] == [30.0]
    (step,) = compare("the only node killed", {OURS: {"next_step_s": [40.0]}, TRAIN: {"next_step_s": [20.0]}})
    assert step.metric == "kill -9 to the next new step, s" and step.ratio == 2.0


def test_the_peers_import_none_of_our_libraries() -> None:
    listed = (
        "import sys, raystill.bench.cluster_sides; print({'torch', 'ray', 'pydantic'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_quick_takes_one_round_and_kills_nothing() -> None:
    assert (QUICK.rounds, QUICK.kills) == (1, False) and Sizes().rounds == 3 and Sizes().kills


def test_times_come_from_the_log_the_parts_and_the_peers_lines(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    log.write_text("".join(json.dumps({"time": time, "event": "progress"}) + "\n" for time in (10.5, 11.0)))
    assert first_event(log) == 10.5
    for name, moment in (("b.parquet", 9.0), ("a.parquet", 20.0), ("commit.json", 1.0)):
        part = tmp_path / "store" / "rows" / name
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        os.utime(part, (moment, moment))
    assert part_times(tmp_path / "store") == [9.0, 20.0]
    assert times_in(tmp_path / "nothing") == []
    (tmp_path / "done").write_text("1.5\n2.5\n", encoding="utf-8")
    assert times_in(tmp_path / "done") == [1.5, 2.5]
