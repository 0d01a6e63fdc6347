"""Where the arms of one task and seed live: its teacher store, the student that all of them start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from raystill.bench.quality_arms import STORED, Arm, Task
from raystill.bench.quality_text import build_text_store, train_text_teacher
from raystill.bench.quality_train import train_in_process
from raystill.config.load import load_config
from raystill.config.loaded import LoadedConfig
from raystill.pipeline import run_pipeline
from raystill.run.paths import RunPaths
from raystill.run.publish import publish_file

DEMO = Path("configs/demo.yaml")
# Draws per token. On text they are meant to take about the bytes of the best 8. Peaked distributions repeat
# draws: the demo's 4000 take 9.3 bytes, half of what its best 8 take and as many as its best 3.
DRAWS: dict[Task, int] = {"demo": 4000, "text": 16}


@dataclass(frozen=True)
class Sizes:
    """How much of everything: optimizer steps per task, rows of a world, held-out prompts."""

    warm_steps: dict[Task, int]
    steps: dict[Task, int]
    tasks: tuple[Task, ...] = ("demo", "text")
    seeds: tuple[int, ...] = (0, 1, 2)
    train_rows: int = 2600
    eval_rows: int = 400
    teacher_steps: int = 1000
    engine: str = "auto"


FULL = Sizes(warm_steps={"demo": 200, "text": 100}, steps={"demo": 500, "text": 400})
QUICK = Sizes(
    warm_steps={"demo": 10},
    steps={"demo": 20},
    tasks=("demo",),
    seeds=(0,),
    train_rows=250,
    eval_rows=50,
    engine="transformers",
)


@dataclass(frozen=True)
class World:
    """One task with one seed. `overrides` make its configuration from that of `base`."""

    base: Path
    task: Task
    seed: int
    overrides: tuple[str, ...]
    steps: int

    def config(self, *more: str) -> LoadedConfig:
        """Its configuration, with what an arm changes."""
        return load_config([self.base], (*self.overrides, *more))

    @property
    def paths(self) -> RunPaths:
        """The paths of its run."""
        return RunPaths.from_config(self.config().config)

    def arm_config(self, arm: Arm) -> LoadedConfig:
        """The configuration of one arm."""
        draws = (f"teacher.signals.num_draws={DRAWS[self.task]}",) if arm.signal == "sampled" else ()
        return self.config(f"train.distillation.steps={arm.steps(self.steps)}", *arm.overrides, *draws)


def build_world(root: Path, task: Task, seed: int, sizes: Sizes, *, with_draws: bool, threads: int) -> World:
    """Answers, signals and the student that all arms start from; what is there already is kept.

    Ray must be running.
    """
    without_vllm = task == "text" or sizes.engine == "transformers"
    base = _without_vllm(root) if without_vllm else DEMO
    overrides = (
        f"run.dir={root}",
        f"run.name={task}-{seed}",
        f"run.seed={seed}",
        f"prompts.split_seed={seed}",
        f"prompts.eval_size={sizes.eval_rows}",
        f"teacher.signals.num_logprobs={STORED}",
        "training.cpus_per_worker=1",
        f"train.sft.steps={sizes.warm_steps[task]}",
        "train.sft.eval_strategy=no",
        "train.distillation.evaluation_strategy=no",
        f"train.distillation.seed={seed}",
        *(_demo_rows(sizes) if task == "demo" else _text_rows(root, base, seed, sizes, threads)),
    )
    world = World(base, task, seed, overrides, sizes.steps[task])
    run_pipeline(world.config(), until="generate" if task == "demo" else "score")
    if with_draws:
        run_pipeline(world.config(*_draw_overrides(world)), until="score")
    if not world.paths.model("sft").exists():
        train_in_process(world.config().config, world.paths, "sft", threads)
    return world


def _without_vllm(root: Path) -> Path:
    """The demo's configuration with the transformers engine, which starts at once."""
    path = root / "base.yaml"
    content = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    del content["teacher"]["vllm"]
    content["teacher"]["engine"] = "transformers"
    with publish_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _draw_overrides(world: World) -> tuple[str, ...]:
    """A second run over the same store, which adds draws to the same answers."""
    return (
        f"run.name={world.task}-{world.seed}-draws",
        *(() if world.task == "text" else (f"teacher.store.path={world.paths.store}",)),
        "teacher.signals.kind=sampled",
        "teacher.signals.capture=score",
        f"teacher.signals.num_draws={DRAWS[world.task]}",
    )


def _demo_rows(sizes: Sizes) -> tuple[str, ...]:
    limit = sizes.train_rows + sizes.eval_rows
    return (f"prompts.sources=[{{path: platform/raystill/demo/data/prompts.jsonl, limit: {limit}}}]",)


def _text_rows(root: Path, base: Path, seed: int, sizes: Sizes, threads: int) -> tuple[str, ...]:
    teacher = train_text_teacher(root, base, sizes.teacher_steps, threads)
    store = build_text_store(root / f"text-{seed}-data", teacher, seed, sizes.train_rows + sizes.eval_rows)
    return (
        "prompts.sources=[]",
        f"teacher.base.from_store={store}",
        f"teacher.open.model.name={teacher}",
        "teacher.signals.capture=score",
        "train.sft.per_device_train_batch_size=8",
        "train.distillation.per_device_train_batch_size=8",
        "student.tokenizer=null",
    )
