"""A run of the stage generate whose processes are killed again and again; shared by all soaks.

RAYSTILL_SOAK_KILLS says how many kills a soak has (default 100). What kill number i hits and how long it
waits is drawn from RAYSTILL_SOAK_SEED and i alone (default: a new seed, printed), so that a failure can be
replayed, from its own kill on where RAYSTILL_SOAK_FIRST says so: `RAYSTILL_SOAK_SEED=7 RAYSTILL_SOAK_FIRST=57
RAYSTILL_SOAK_KILLS=60 pytest -m soak tests/soak` does kills 57, 58 and 59 of 60.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from raystill.config.schema import Config
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths
from raystill.store.store import TeacherStore, load_store
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

KILLS = int(os.environ.get("RAYSTILL_SOAK_KILLS", "100"))
FIRST = int(os.environ.get("RAYSTILL_SOAK_FIRST", "0"))
SEED = int(os.environ.get("RAYSTILL_SOAK_SEED", "") or secrets.randbelow(1_000_000))
REPORTS: list[str] = []

_DRIVER = Path(__file__).parents[1] / "teacher" / "killed_driver.py"
# Long on purpose: a start takes ten seconds on a quiet machine.
_STALLED_SECONDS = 600.0
_SHOWN_ERRORS = 4000


@dataclass
class KilledRun:
    """One run. `asked` counts what the teacher has been asked for, `worker` is a part of its actor's title.

    `victims` are ways to kill besides those of `driver` and `worker`. `log` says what was done.
    """

    config: Config
    asked: Callable[[], int]
    worker: str
    victims: Mapping[str, Callable[[KilledRun], None]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None
    starts: int = 0
    log: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    noise: random.Random = field(default_factory=lambda: random.Random(SEED))
    _began: float = field(default_factory=time.monotonic)

    @property
    def is_finished(self) -> bool:
        """Whether a driver has done the whole job."""
        return self.driver is not None and self.driver.poll() == 0

    @property
    def notes(self) -> str:
        """For the report of a failure: the seed, the kills, the end of what drivers printed."""
        said = self._errors.read_text(errors="replace")[-_SHOWN_ERRORS:] if self._errors.exists() else ""
        return f"seed {SEED}, {self.log}\n{said}"

    def start(self) -> None:
        """Start the driver, unless it runs."""
        if self.driver is not None and self.driver.poll() is None:
            return
        if self.driver is not None and self.driver.returncode:
            # A kill has ended it, or its workers died more often than it allows.
            self.log.append(f"driver ended with {self.driver.returncode}")
        self.starts += 1
        assert self.starts <= 2 * self.kills.total() + 3, self.notes
        self._errors.parent.mkdir(parents=True, exist_ok=True)
        with self._errors.open("ab") as stream:
            self.driver = subprocess.Popen(
                [sys.executable, str(_DRIVER), self.config.model_dump_json()],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env={**os.environ, **self.environment},
            )

    def wait_for_progress(self, progress: int) -> None:
        """Wait until so much more was asked for; a driver that has ended is started again."""
        wanted = self.asked() + progress
        deadline = time.monotonic() + _STALLED_SECONDS
        while self.asked() < wanted:
            assert not self.is_finished, f"the job ended before its kills: {self.notes}"
            assert time.monotonic() < deadline, f"no progress: {self.notes}"
            self.start()
            time.sleep(0.05)

    def kill(self, victim: str) -> None:
        """SIGKILL; of several workers one. What is left of a killed driver's Ray is waited for."""
        self.log.append(victim)
        self.kills[victim] += 1
        if victim in self.victims:
            self.victims[victim](self)
        elif victim == "worker":
            found = self.find_workers()
            for process in [self.noise.choice(found)] if found else []:
                process.kill()
                process.wait(_STALLED_SECONDS)
        else:
            assert victim == "driver" and self.driver is not None
            left = [each for worker in self.find_workers() for each in (worker, *descendants(worker))]
            self.driver.kill()
            self.driver.wait()
            assert psutil.wait_procs(left, timeout=_STALLED_SECONDS)[1] == [], self.notes

    def find_workers(self) -> list[psutil.Process]:
        """The actors' processes: Ray puts an actor's class into its title."""
        assert self.driver is not None
        driver = psutil.Process(self.driver.pid)
        return [process for process in descendants(driver) if self.worker in title(process)]

    def soak(
        self,
        weights: Mapping[str, float],
        progress: tuple[int, int],
        number: int,
        before_kill: Callable[[str], None] = lambda victim: None,
        after_kill: Callable[[str], None] = lambda victim: None,
    ) -> None:
        """Kill `number` times, from FIRST on, each after some progress; every victim once at first."""
        names = list(weights)
        for index in range(min(FIRST, number - 1), number):
            noise = self.noise = random.Random(f"{SEED}-{index}")
            drawn = noise.choices(names, list(weights.values()))[0]
            victim = names[index] if index < len(names) else drawn
            self.wait_for_progress(noise.randint(*progress))
            time.sleep(noise.uniform(0.0, 0.3))
            before_kill(victim)
            self.kill(victim)
            after_kill(victim)

    def finish(self, what: str) -> TeacherStore:
        """Let the run end by itself."""
        asked, deadline = self.asked(), time.monotonic() + _STALLED_SECONDS
        while not self.is_finished:
            self.start()
            now = self.asked()
            if now > asked:
                asked, deadline = now, time.monotonic() + _STALLED_SECONDS
            assert time.monotonic() < deadline, f"no progress: {self.notes}"
            time.sleep(0.1)
        REPORTS.append(
            f"{what}: {self.kills.total()} kills ({dict(self.kills)}), {self.starts} drivers, "
            f"{time.monotonic() - self._began:.0f} s; again with RAYSTILL_SOAK_SEED={SEED}"
        )
        return load_store(RunPaths.from_config(self.config).store)

    @property
    def _errors(self) -> Path:
        return Path(self.config.run.dir) / "drivers.txt"


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Children of a process and theirs; none where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def title(process: psutil.Process) -> str:
    """A process's command line, "" where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def save_questions(config: Config, number: int, split: str = "train") -> None:
    """A prompt table of `number` distinct questions, as prepare leaves it."""
    paths = RunPaths.from_config(config)
    prompts = [
        Prompt(
            f"p{index:06d}",
            "soak",
            split,  # type: ignore[arg-type]
            [{"role": "user", "content": f"question {index}"}],
            "text",
            None,
            4,
        )
        for index in range(number)
    ]
    save_prompts(paths.prompt_table, prompts)
    manifest = Manifest(stage="prepare", fingerprint=f"soak-{number}", config={}, inputs={})
    save_manifest(paths.stage_dir("prepare"), manifest)


def end(run: KilledRun) -> None:
    """Nothing of a run is left when its test ends, however it ends."""
    if run.driver is not None and run.driver.poll() is None:
        run.kill("driver")
