"""From kill -9 to the next step that had not been done before: start, resume, and the lost steps once more.

Each side trains as large a model on as many tokens per step, saves as often and is killed as many steps after
a save. `worker` is the product's loop in a process of its own, `driver` the stage with a Ray that it starts
itself, as `raystill run` does; the peer is transformers' Trainer with `resume_from_checkpoint`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from raystill.bench.result import BenchRow
from raystill.bench.taught_run import taught_run
from raystill.config.load import load_config
from raystill.errors import EnvironmentFault
from raystill.pipeline import run_pipeline
from raystill.run.paths import RunPaths
from raystill.store.stats import compute_stats
from raystill.store.store import load_store
from raystill.train.metrics import iter_metrics

PEER = "HF Trainer"
_MODULE = "raystill.bench.checkpoint_kill_sides"
_LONGEST_SECONDS = 600.0
_LOOK_SECONDS = 0.01
_LONGEST_ROW = 256
_VOCABULARY = 768  # at least as many as the demo's tokenizer has
_SHOWN_LOG = 2000


@dataclass(frozen=True)
class KillSizes:
    """Which of our sides are killed, and how often; every `save_every` steps a save, killed `lost` later."""

    sides: tuple[str, ...] = ("worker", "driver")
    rounds: int = 3
    save_every: int = 20
    lost: int = 10
    width: int = 512
    prompts: int = 400


QUICK = KillSizes(sides=("worker",), rounds=1, save_every=10, lost=5, width=128, prompts=100)


def measure_kills(sizes: KillSizes) -> list[BenchRow]:
    """Medians of the rounds, all sides in turns. Raises EnvironmentFault where a side fails."""
    found: dict[str, list[float]] = {side: [] for side in (*sizes.sides, PEER)}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        configs = {side: write_config(Path(scratch), side, sizes) for side in sizes.sides}
        for config in configs.values():
            run_pipeline(load_config([config]), until="generate")
        row_tokens = mean_row_tokens(next(iter(configs.values())))
        configs[PEER] = write_config(Path(scratch), PEER, sizes, row_tokens)
        for _ in range(sizes.rounds):
            for side, seconds in found.items():
                seconds.append(_kill_and_go_on(side, configs[side], sizes))
    return compare(sizes, {side: statistics.median(seconds) for side, seconds in found.items()})


def compare(sizes: KillSizes, medians: dict[str, float]) -> list[BenchRow]:
    """A row for each of our sides; nothing is asked of them but to be printed."""
    theirs = medians[PEER]
    return [
        BenchRow(
            f"{side}, killed {sizes.lost} steps after a save", "kill to the next new step, s",
            medians[side], theirs, PEER, medians[side] / theirs, "printed", True,
        )
        for side in sizes.sides
    ]  # fmt: skip


def write_config(directory: Path, side: str, sizes: KillSizes, row_tokens: int = _LONGEST_ROW) -> Path:
    """The configuration of a side's run, as a file in `directory`.

    The peer reads its shape and steps, and makes rows of `row_tokens`, which for us is the longest.
    """
    values = taught_run(directory, side.split()[0].lower(), sizes.prompts, eval_size=20) | {
        "student": {
            "hidden_size": sizes.width, "intermediate_size": 4 * sizes.width, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": _LONGEST_ROW, "vocab_size": _VOCABULARY, "tie_word_embeddings": True,
        },
        "training": {
            "max_seq_len": row_tokens, "log_every": 1, "save_every": sizes.save_every,
            "checkpoint_cleanup": {"min_free_space_gb": 0.0, "max_checkpoints": 1},
        },
        # Far more steps than are taken: the milestones lie elsewhere.
        "train": {
            "distillation": {
                "init": "student", "steps": 100_000, "per_device_train_batch_size": 4,
                "evaluation_strategy": "no",
            }
        },
    }  # fmt: skip
    path = directory / f"{values['run']['name']}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def progress_file(config: Path) -> Path:
    """Where the peer writes a line for every step: {"step": n}, like metrics.jsonl."""
    return config.with_suffix(".jsonl")


def mean_row_tokens(config: Path) -> int:
    """Tokens of a row of the store that a side trains on, prompt and answer, on average."""
    stats = compute_stats(load_store(RunPaths.from_config(load_config([config]).config).store))
    return round((stats.num_prompt_tokens + stats.num_tokens) / stats.num_rows)


def kill_step(done: int, sizes: KillSizes) -> int:
    """The step to kill at where `done` was the last one: as many after a save as ever, two saves later."""
    return (done // sizes.save_every + 2) * sizes.save_every + sizes.lost


def _kill_and_go_on(side: str, config: Path, sizes: KillSizes) -> float:
    """Seconds from the kill of a process that has gone on for a while to a step that it had not taken."""
    paths = RunPaths.from_config(load_config([config]).config)
    file = progress_file(config) if side == PEER else paths.training_metrics("distill")
    wanted = kill_step(last_step(file), sizes)
    with _started(side, config) as child:
        _wait_until(lambda: last_step(file) >= wanted, child, config)
    started, done = time.monotonic(), last_step(file)
    with _started(side, config) as child:
        _wait_until(lambda: last_step(file) > done, child, config)
        return time.monotonic() - started


def last_step(file: Path) -> int:
    """The newest step of a file like metrics.jsonl; 0 without one."""
    return max((int(line["step"]) for line in iter_metrics(file)), default=0)


def _wait_until(is_so: Callable[[], bool], child: subprocess.Popen[bytes], config: Path) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not is_so():
        if child.poll() is not None or time.monotonic() > deadline:
            said = config.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
            raise EnvironmentFault(
                f"a side of the benchmark ended with {child.returncode}, or made no step for long",
                where=f"{child.args!r}\n{said[-_SHOWN_LOG:]}",
            )
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _started(side: str, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The side's process, killed at the end with all that it started: Ray's processes have groups of their
    own, and a worker that outlives its driver for a moment would take the next new step."""
    environment: dict[str, Any] = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with config.with_suffix(".log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", _MODULE, side, str(config)],
            stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, which is said elsewhere
            family = psutil.Process(child.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait()
        deadline = time.monotonic() + _LONGEST_SECONDS
        while any(map(_is_alive, family)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # which nobody may have asked after yet
    except psutil.NoSuchProcess:
        return False
