"""What a plan warns of: too little disk, a budget that stops the run, a student as large as its teacher."""

from __future__ import annotations

from collections.abc import Collection

from raystill.cluster.endpoint_cost import find_budget_warning, teacher_work
from raystill.cluster.judge_work import JudgeWork
from raystill.cluster.workload import Workload
from raystill.config.schema import Config
from raystill.errors import Problem
from raystill.run.paths import StageName


def find_disk_warnings(config: Config, needed: int, free: int) -> list[Problem]:
    """Where `needed` bytes are more than are `free`, or fewer are free than checkpoints should leave."""
    found = []
    if needed > free:
        found.append(
            Problem(
                f"the run needs about {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free",
                "run.dir",
                "set it to a larger disk, or lower training.checkpoint_cleanup.max_checkpoints",
            )
        )
    wanted = config.training.checkpoint_cleanup.min_free_space_gb
    if _trains(config) and free < wanted * 1e9:
        found.append(
            Problem(
                f"{free / 1e9:.1f} GB are free, less than training.checkpoint_cleanup.min_free_space_gb "
                f"({wanted:g}): only milestones and the newest checkpoint will be kept",
                "training.checkpoint_cleanup.min_free_space_gb",
                "free space, or lower it",
            )
        )
    return found


def find_budget_warnings(
    config: Config, working: Collection[StageName], workload: Workload, judge: JudgeWork | None
) -> list[Problem]:
    """Where the stages that are `working` would spend more than their budgets allow."""
    found = []
    if "generate" in working and config.teacher.closed is not None:
        found.append(find_budget_warning("teacher", config.teacher.closed, teacher_work(workload)))
    closed = None if config.grade is None else config.grade.closed
    if "grade" in working and judge is not None and closed is not None:
        found.append(find_budget_warning("grade", closed, judge.asked))
    return [warning for warning in found if warning is not None]


def find_size_warnings(config: Config, teacher: int | None, student: int | None) -> list[Problem]:
    """Where the student can't be what distillation is for; sizes are in parameters."""
    opened, base = config.teacher.open, config.student.base_model_name
    if opened is not None and base is not None and base == opened.model.name and _trains(config):
        return [
            Problem(
                f"the student starts from {base}, which is the teacher itself: it has little to learn from "
                "its own answers",
                "student.base_model_name",
                "choose a smaller model, or a larger teacher",
            )
        ]
    if teacher is not None and student is not None and student >= teacher and _trains(config):
        return [
            Problem(
                f"the student has {student:,} parameters and the teacher {teacher:,}: distillation makes "
                "small models out of large ones",
                "student",
                "choose a smaller student, or a larger teacher",
            )
        ]
    return []


def _trains(config: Config) -> bool:
    return config.train.sft is not None or config.train.distillation is not None
