"""Sweeps on a real Ray: one bad trial harms nobody, a killed driver loses nothing, the winner can be run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from raystill.checkpoint.store import latest_valid, list_checkpoints, verify_checkpoint
from raystill.config.load import load_config
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, DiskFault, EnvironmentFault
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths
from raystill.tune import search
from raystill.tune.records import TrialRecord, begin_trial, finish_trial, load_trials
from raystill.tune.sweep import run_sweep

pytestmark = pytest.mark.ray
RATE = "train.distillation.learning_rate"
SweepConfig = Callable[..., LoadedConfig]


def test_a_sweep_ends_with_a_table_a_page_and_a_winner(sweep_config: SweepConfig, ray_address: str) -> None:
    """F35: a trial of NaN is among them."""
    loaded = sweep_config(
        "grid",
        search="grid",
        scheduler="none",
        space={RATE: {"grid": [1e-5, 3e-3, 1e30]}},
        max_concurrent=1,
        report_every=1,
        max_gb=1e-6,
    )
    result = run_sweep(loaded)
    assert [trial.outcome for trial in result.trials] == ["complete", "complete", "failed"]
    assert result.trials[2].problem and result.best is not None and result.best.number == 1
    assert result.teacher_rows == 0 and result.teacher_passes == 0
    assert result.to_json()["teacher_passes"] == 0
    assert pq.read_table(result.paths.table)[RATE].to_pylist() == [1e-5, 3e-3, 1e30]
    with result.paths.csv.open(encoding="utf-8") as stream:
        assert [row["outcome"] for row in csv.DictReader(stream)] == ["complete", "complete", "failed"]
    page = result.paths.report.read_text(encoding="utf-8")
    assert "Values and results" in page and "<script" not in page
    # The winner: a verified checkpoint of its own and a configuration that trains it again from the store.
    assert result.best_config is not None
    winner = load_config([result.best_config]).config
    assert winner.tune is None and winner.run.name == "grid-sweep"
    assert winner.train.distillation is not None and winner.train.distillation.learning_rate == 3e-3
    assert RunPaths.from_config(winner).store == RunPaths.from_config(loaded.config).store
    (pinned,) = (result.paths.best / "checkpoint").iterdir()
    verify_checkpoint(pinned)
    # The budget took the losers' checkpoints, and their models went at once.
    assert not (result.paths.trial(0) / "checkpoints").exists()
    assert not (result.paths.trial(0) / "model").exists()
    assert (result.paths.trial(1) / "model" / "config.json").exists()
    # A trial's checkpoints obey the promise of any training stage: the milestones, and three others.
    kept = list_checkpoints(result.paths.trial(1) / "checkpoints")
    assert [int(path.name.rpartition("-")[2]) for path in kept] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    again = run_sweep(loaded)
    assert again.concurrency.trials == 0 and again.best == result.best
    changed = loaded.config.model_copy(
        update={"losses": loaded.config.losses.model_copy(update={"ce_weight": 0.9})}
    )
    with pytest.raises(ConfigError, match=r"losses.*ce_weight"):
        run_sweep(LoadedConfig(changed))


@pytest.mark.soak
def test_a_full_disk_ends_the_sweep_and_the_same_command_goes_on(
    write_config: Callable[..., Path], ray_address: str
) -> None:
    """F14: the trial's second start fails as its first one did, with the steps that it made saved."""
    file = write_config(
        "full", search="grid", scheduler="none", max_concurrent=1, report_every=5,
        space={RATE: {"grid": [1e-3, 3e-3]}},
    )  # fmt: skip
    sweep = SweepPaths.of(RunPaths.from_config(load_config([file]).config), "sweep")
    with pytest.raises(DiskFault, match="the sweep stopped: stopped after step") as caught:
        run_sweep(load_config([file], ["disk.hard_free_gb=1e9"]))
    assert caught.value.exit_code == 4
    (begun,) = load_trials(sweep)
    assert begun.outcome == "unfinished"
    assert latest_valid(sweep.trial(0) / "checkpoints").step is not None
    result = run_sweep(load_config([file]))
    assert [trial.outcome for trial in result.trials] == ["complete", "complete"]


@pytest.mark.soak
def test_an_interrupted_sweep_saves_what_its_trials_are_at(
    write_config: Callable[..., Path], ray_address: str, tmp_path: Path
) -> None:
    """F35: SIGTERM, as `ray job stop` sends it; the next report is hours away."""
    file = write_config(
        "stopped", search="grid", scheduler="none", max_concurrent=1, report_every=1_000_000,
        space={RATE: {"grid": [1e-3]}},
    )  # fmt: skip
    sweep = SweepPaths.of(RunPaths.from_config(load_config([file]).config), "sweep")
    trial = sweep.trial(0)
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "raystill.cli.main", "tune", "--config", str(file),
                "--set", "training.steps=1000000",
            ],
            env=os.environ | {"RAY_ADDRESS": ray_address}, stdout=log, stderr=log,
        )  # fmt: skip
    wait_until(lambda: (trial / "initial_model").is_dir(), driver)
    time.sleep(3.0)  # some steps
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(300) == 130, (tmp_path / "driver.log").read_text()
    found = latest_valid(trial / "checkpoints")
    assert found.step is not None and 0 < found.step < 100_000  # the first milestone is at 100,000
    (begun,) = load_trials(sweep)
    assert begun.outcome == "unfinished" and not (trial / "stop.json").exists()


@pytest.mark.soak
def test_a_trial_that_crashes_harms_nobody(sweep_config: SweepConfig, ray_address: str) -> None:
    """F35: an error that is none of ours, twice; the trial after it trains in the same sweep."""
    loaded = sweep_config(
        "crash", search="grid", scheduler="none", max_concurrent=1, report_every=10,
        space={"student.intermediate_size": {"grid": [10**13, 48]}},
    )  # fmt: skip
    result = run_sweep(loaded)
    assert [trial.outcome for trial in result.trials] == ["failed", "complete"]
    assert result.trials[0].problem and result.best is not None and result.best.number == 1


@pytest.mark.soak
def test_a_trial_whose_process_is_killed_goes_on(sweep_config: SweepConfig, ray_address: str) -> None:
    """F35: started again it goes on from its newest checkpoint, and the next one trains as well."""
    loaded = sweep_config(
        "shot", search="grid", scheduler="none", max_concurrent=1, report_every=2,
        space={RATE: {"grid": [1e-3, 2e-3]}},
    )  # fmt: skip
    shot: list[int] = []

    def shoot(records: list[TrialRecord], *_: Any) -> None:
        if shot or not records or len(records[0].reports) < 2 or records[0].outcome != "unfinished":
            return
        for process in psutil.Process().children(recursive=True):
            if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                process.kill()
                shot.append(process.pid)

    result = run_sweep(loaded, watch=shoot)
    assert len(shot) == 1
    assert [trial.outcome for trial in result.trials] == ["complete", "complete"]
    assert [report.step for report in result.trials[0].reports] == [2, 4, 6, 8, 10]


def test_a_killed_driver_loses_nothing(
    write_config: Callable[..., Path], ray_address: str, tmp_path: Path
) -> None:
    """F35."""
    file = write_config(
        "killed", scheduler="asha", num_samples=2, max_concurrent=1, report_every=5,
        space={RATE: {"loguniform": [1e-3, 1e-2]}},
    )  # fmt: skip
    loaded = load_config([file])
    sweep = SweepPaths.of(RunPaths.from_config(loaded.config), "sweep")
    log = (tmp_path / "driver.log").open("wb")
    driver = subprocess.Popen(
        [sys.executable, "-P", "-m", "raystill.cli.main", "tune", "--config", str(file)],
        env=os.environ | {"RAY_ADDRESS": ray_address}, stdout=log, stderr=log,
    )  # fmt: skip
    wait_until(lambda: any(trial.outcome != "unfinished" for trial in load_trials(sweep)), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {trial.number: trial for trial in load_trials(sweep) if trial.outcome != "unfinished"}
    assert len(before) == 1
    result = run_sweep(loaded)
    assert {trial.outcome for trial in result.trials} <= {"complete", "stopped"} and len(result.trials) == 2
    assert result.reused == before.keys()
    for number, trial in before.items():
        assert result.trials[number] == trial


@pytest.mark.parametrize("together", [False, True])
def test_weak_trials_go_on_from_strong_ones(
    sweep_config: SweepConfig, ray_address: str, together: bool
) -> None:
    """Whatever order reports arrive in; both at once finds the weak trial while its pause is being saved."""
    loaded = sweep_config(
        f"pbt-{together}", scheduler="pbt", num_samples=2, max_concurrent=2, report_every=3,
        pbt={"every": 0.3, "quantile": 0.5, "resample": 0.0}, space={RATE: {"loguniform": [1e-6, 1e-2]}},
    )  # fmt: skip
    sweep = SweepPaths.of(RunPaths.from_config(loaded.config), "sweep")

    def until_both_reported(*_: Any) -> None:
        """Called by the driver between two reports: the next one that it sees is then there already."""
        deadline = time.monotonic() + 2
        while len({len(trial.reports) for trial in load_trials(sweep)}) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)

    result = run_sweep(loaded, watch=until_both_reported if together else None)
    assert [trial.outcome for trial in result.trials] == ["complete", "complete"]
    handed_on = [trial for trial in result.trials if trial.lineage]
    assert handed_on and all(step["from"] != trial.number for trial in handed_on for step in trial.lineage)
    assert all(1e-6 <= trial.params[RATE] <= 1e-2 for trial in result.trials)


@pytest.mark.soak  # workers import torch anew for every trial
def test_trials_of_several_workers_give_back_what_they_held(
    sweep_config: SweepConfig, ray_address: str
) -> None:
    """One goes to its end, one is stopped, one diverges: no placement group and no CPU stays taken."""
    import ray

    loaded = sweep_config(
        "together", search="grid", scheduler="asha", asha={"grace": 0.5, "reduction_factor": 2},
        space={RATE: {"grid": [3e-3, 1e-6, 1e30]}}, max_concurrent=1, report_every=5,
    )  # fmt: skip
    training = loaded.config.training.model_copy(update={"num_workers": 2})
    result = run_sweep(LoadedConfig(loaded.config.model_copy(update={"training": training})))
    assert [trial.outcome for trial in result.trials] == ["complete", "stopped", "failed"]
    assert "not finite" in result.trials[2].problem or "nan" in result.trials[2].problem
    assert result.trials[0].train_seconds > 0
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


@pytest.mark.soak
def test_optuna_chooses_the_trials_and_a_resumed_search_chooses_others(
    sweep_config: SweepConfig, ray_address: str
) -> None:
    pytest.importorskip("optuna")
    space = {RATE: {"loguniform": [1e-4, 1e-2]}, "losses.ce_weight": {"choice": [0.0, 0.5]}}
    loaded = sweep_config(
        "optuna", search="optuna", scheduler="none", num_samples=3, max_concurrent=1, report_every=5,
        space=space,
    )  # fmt: skip
    first = run_sweep(loaded)
    assert [trial.outcome for trial in first.trials] == ["complete"] * 3
    for trial in first.trials:
        assert 1e-4 <= trial.params[RATE] <= 1e-2 and trial.params["losses.ce_weight"] in (0.0, 0.5)
    assert len({trial.params[RATE] for trial in first.trials}) == 3
    assert first.best in first.trials and first.teacher_rows == 0
    shutil.rmtree(first.paths.trial(2))
    again = run_sweep(loaded)
    assert again.trials[:2] == first.trials[:2] and again.reused == {0, 1}
    assert again.trials[2].outcome == "complete"
    assert len({trial.params[RATE] for trial in again.trials}) == 3  # none of the earlier ones once more


def test_what_no_trial_could_do_is_refused_and_fresh_keeps_what_there_is(
    sweep_config: SweepConfig, ray_address: str
) -> None:
    """A trial's process looks, so that the driver imports no torch; nothing is written or let go before."""
    loaded = sweep_config("refused", num_samples=1, space={RATE: {"uniform": [1e-3, 2e-3]}})
    plain = loaded.config.model_dump(mode="json")
    plain["train"]["distillation"]["peft"] = {"lora": {"r": 4096}}
    config = Config.model_validate(plain)
    sweep = SweepPaths.of(RunPaths.from_config(config), "sweep")
    begin_trial(sweep, 0, "before", {RATE: 1e-3})
    with pytest.raises(ConfigError, match="rank 4096 is above the full rank") as caught:
        run_sweep(LoadedConfig(config), fresh=True)
    assert caught.value.problems[0].where.endswith("lora.r") and caught.value.problems[0].fix
    assert not sweep.record.exists() and [trial.number for trial in load_trials(sweep)] == [0]


def test_a_trial_that_fits_nowhere_is_refused(sweep_config: SweepConfig, ray_address: str) -> None:
    """I33."""
    with pytest.raises(EnvironmentFault, match="a trial takes 4096 CPU"):
        run_sweep(sweep_config("large", resources={"cpus": 4096}, space={RATE: {"uniform": [1e-3, 2e-3]}}))


def wait_until(reached: Callable[[], Any], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert driver.poll() is None and time.monotonic() < deadline, "the sweep made no progress"
        time.sleep(0.1)


def test_a_run_without_answers_gets_no_files(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """I14: a sweep over nothing."""
    loaded = sweep_config("early", search="random", num_samples=1, space={RATE: {"uniform": [1e-4, 1e-3]}})
    section = loaded.config.run.model_copy(update={"dir": str(tmp_path)})
    empty = LoadedConfig(loaded.config.model_copy(update={"run": section}))
    with pytest.raises(DataError, match="needs the output of generate"):
        run_sweep(empty)
    assert not RunPaths.from_config(empty.config).root.exists()


def test_a_sweep_whose_trials_all_failed_has_no_winner_and_says_why(
    sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I40: NaN everywhere."""
    loaded = sweep_config("nowhere", search="grid", scheduler="none", space={RATE: {"grid": [1e-3, 1e-2]}})
    sweep = SweepPaths.of(RunPaths.from_config(loaded.config), "sweep")
    for number, rate in enumerate((1e-3, 1e-2)):
        begin_trial(sweep, number, str(number), {RATE: rate})
        finish_trial(sweep, number, "failed", problem="eval/ce is nan at step 1")
    monkeypatch.delattr(search, "ray_session")  # all trials are done: nothing is started
    with pytest.raises(DataError, match="no trial reported its metric") as caught:
        run_sweep(loaded)
    assert caught.value.exit_code == 3
    assert caught.value.problems[0].fix.count("eval/ce is nan") == 2
    assert sweep.table.exists() and not sweep.best.exists()
