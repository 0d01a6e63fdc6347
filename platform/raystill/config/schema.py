"""The whole configuration as one type. Every key that raystill knows is reachable from `Config`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raystill.config.curate import CurateSection
from raystill.config.curriculum import CurriculumSection
from raystill.config.disk import DiskSection
from raystill.config.general import (
    ClusterSection,
    CudaSection,
    DatasetSection,
    DeviceSection,
    PromptsSection,
    RunSection,
    TrainingSection,
)
from raystill.config.grade import GradeSection
from raystill.config.losses import LossesSection
from raystill.config.models import AssistantSection, StudentSection
from raystill.config.output import EvaluationSection, ExportSection
from raystill.config.section import Section, not_yet
from raystill.config.teacher import TeacherSection
from raystill.config.trackers import TrackersSection
from raystill.config.training import TrainSection
from raystill.config.tune import TuneSection


class Config(Section):
    """A run: loaded once by `raystill.config.load.load_config`, frozen, edited by nothing downstream."""

    run: RunSection = Field(default_factory=RunSection)
    device: DeviceSection = Field(default_factory=DeviceSection)
    cuda: CudaSection = Field(default_factory=CudaSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    disk: DiskSection = Field(default_factory=DiskSection)
    datasets: list[DatasetSection] = Field(
        default_factory=list, description="Prompt datasets by name and key."
    )
    prompts: PromptsSection = Field(default_factory=PromptsSection)
    teacher: TeacherSection = Field(default_factory=TeacherSection)
    assistant: AssistantSection | None = None
    student: StudentSection = Field(default_factory=StudentSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    train: TrainSection = Field(default_factory=TrainSection)
    losses: LossesSection = Field(default_factory=LossesSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    export: ExportSection = Field(default_factory=ExportSection)
    grade: GradeSection | None = None
    curate: CurateSection | None = None
    curriculum: CurriculumSection | None = None
    process_supervision: dict[str, Any] | None = not_yet(None, "Per-token weights from spans.")
    judge: dict[str, Any] | None = not_yet(None, "Judge training.")
    drafter: dict[str, Any] | None = not_yet(None, "Drafter training.")
    qat: dict[str, Any] | None = not_yet(None, "Quantisation-aware training.")
    trackers: TrackersSection = Field(default_factory=TrackersSection)
    tune: TuneSection | None = None
    hardware_profiles: dict[str, Any] | None = not_yet(None, "Targets per machine.")
    tracing: dict[str, Any] | None = not_yet(None, "Experiment tracking.")
