"""The one module that owns every path of a run directory. Nothing else joins artefact names.

runs/<name>/
  prompts/            prompts.parquet, rejects.parquet, manifest.json          (prepare)
  teacher_store/      store.json, partitions, commits, rejects                  (generate, score)
  store_locks/        who writes to a store on object storage, which has no locks   (generate, grade)
  plan/               requests.parquet: what the last generate planned; forecast.json: what stages were
                      expected to take; may be deleted
  generate/           requests.parquet, teacher.jsonl, manifest.json            (generate)
  score/              manifest.json                                             (score)
  grade/              questions.parquet, scores.parquet, ungraded.parquet, manifest.json (grade)
  judge_store/        what the judge said, a store like the teacher's              (grade)
  curate/             selected.parquet, rejects.parquet, report.json, manifest.json (curate)
  sft/  distill/      checkpoints/, examples/, model/, metrics.jsonl, manifest.json (sft, distill)
  evaluate/           results.json, completions.parquet, manifest.json          (evaluate)
  export/             model/, export.json, manifest.json                        (export)
  report.html         one self-contained page                                   (report)
  logs/               run.jsonl and one text log per stage
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from raystill.config.schema import Config
from raystill.run.remote import open_place

StageName = Literal["prepare", "generate", "score", "grade", "curate", "sft", "distill", "evaluate", "export"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)

MANIFEST_NAME = "manifest.json"
STARTED_NAME = "started.json"


@dataclass(frozen=True)
class RunPaths:
    """Every path of one run, from its root directory. Pure: nothing here touches the disk.

    `shared_judge_store` is None where the judge's store lies in the run directory, `copies` where the
    checkpoints are not also copied to object storage.
    """

    root: Path
    store: Path
    shared_judge_store: Path | None = field(default=None, kw_only=True)
    copies: Path | None = field(default=None, kw_only=True)

    @classmethod
    def from_config(cls, config: Config) -> RunPaths:
        """The run directory that `run.dir` and `run.name` name, and the store it uses."""
        root = Path(config.run.dir).expanduser() / config.run.name
        own_store = config.teacher.base.from_store or config.teacher.store.path
        judge_store = config.grade.store.path if config.grade is not None else None
        copies = config.training.checkpoint_copies
        return cls(
            root=root,
            store=open_place(own_store) if own_store else root / "teacher_store",
            shared_judge_store=open_place(judge_store) if judge_store else None,
            copies=open_place(copies) / config.run.name if copies else None,
        )

    def stage_dir(self, stage: StageName) -> Path:
        """Directory of a stage's output; it holds the stage's manifest."""
        return self.root / ("prompts" if stage == "prepare" else stage)

    @property
    def prompt_table(self) -> Path:
        return self.stage_dir("prepare") / "prompts.parquet"

    @property
    def prompt_rejects(self) -> Path:
        return self.stage_dir("prepare") / "rejects.parquet"

    @property
    def teacher_jsonl(self) -> Path:
        return self.stage_dir("generate") / "teacher.jsonl"

    @property
    def request_plan(self) -> Path:
        """What the last run of generate planned, so that the next one need not render every prompt again."""
        return self.root / "plan" / "requests.parquet"

    @property
    def forecast(self) -> Path:
        """What was expected of the stages before they began."""
        return self.root / "plan" / "forecast.json"

    @property
    def store_locks(self) -> Path:
        """Locks of the writers of a store on object storage, and who this run is to it."""
        return self.root / "store_locks"

    @property
    def requests(self) -> Path:
        """The keys of the store that belong to this run, with their split."""
        return self.stage_dir("generate") / "requests.parquet"

    @property
    def judge_store(self) -> Path:
        """The store of the judge's replies."""
        return self.shared_judge_store or self.root / "judge_store"

    @property
    def grade_questions(self) -> Path:
        """What the judge is asked: a prompt table whose ids are keys of the teacher's answers."""
        return self.stage_dir("grade") / "questions.parquet"

    @property
    def grades(self) -> Path:
        """The judge's score of each answer, by its key; curate reads it."""
        return self.stage_dir("grade") / "scores.parquet"

    @property
    def ungraded(self) -> Path:
        """Answers without a score, and why."""
        return self.stage_dir("grade") / "ungraded.parquet"

    @property
    def selection(self) -> Path:
        """The rows that the stage curate kept; training reads them where `curate` is configured."""
        return self.stage_dir("curate") / "selected.parquet"

    @property
    def curate_rejects(self) -> Path:
        return self.stage_dir("curate") / "rejects.parquet"

    @property
    def curate_report(self) -> Path:
        """What every filter dropped, and the shares of the sources that came out."""
        return self.stage_dir("curate") / "report.json"

    def checkpoints(self, stage: StageName) -> Path:
        """Checkpoints of a training stage."""
        return self.stage_dir(stage) / "checkpoints"

    def checkpoint_copies(self, stage: StageName) -> Path | None:
        """Where a training stage's checkpoints are copied to, if anywhere; an address."""
        return None if self.copies is None else self.copies / stage

    def started(self, stage: StageName) -> Path:
        """What a stage was begun with, while it isn't complete."""
        return self.stage_dir(stage) / STARTED_NAME

    def ray_attempts(self, stage: StageName) -> Path:
        """What Ray Train noted of a training stage's last attempt: pointers to its checkpoints."""
        return self.stage_dir(stage) / "ray"

    def stop_request(self, stage: StageName) -> Path:
        """While it exists, a training stage that runs saves and stops."""
        return stop_request_in(self.stage_dir(stage))

    def model(self, stage: StageName) -> Path:
        """The final model of `sft`, `distill` or `export`, loadable by transformers."""
        return self.stage_dir(stage) / "model"

    def initial_model(self, stage: StageName) -> Path:
        """The model that a training stage started from, kept for the gap report's `untrained` row."""
        return self.stage_dir(stage) / "initial_model"

    def training_metrics(self, stage: StageName) -> Path:
        """One JSON object per logged step of a training stage."""
        return self.stage_dir(stage) / "metrics.jsonl"

    def tracker_record(self, stage: StageName) -> Path:
        """Which run of an experiment tracker a training stage writes to."""
        return self.stage_dir(stage) / "tracker.json"

    def rollout_weights(self, stage: StageName, rank: int) -> Path:
        """Where a training worker hands its weights to the engine that makes its rollouts; scratch."""
        return self.stage_dir(stage) / f"rollout_weights-{rank}"

    def training_examples(self, stage: StageName) -> Path:
        """Encoded rows of a training stage, one directory per fingerprint of what they came from."""
        return self.stage_dir(stage) / "examples"

    @property
    def evaluation_results(self) -> Path:
        return self.stage_dir("evaluate") / "results.json"

    @property
    def evaluation_completions(self) -> Path:
        return self.stage_dir("evaluate") / "completions.parquet"

    @property
    def export_verdict(self) -> Path:
        return self.stage_dir("export") / "export.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run_log(self) -> Path:
        return self.logs / "run.jsonl"

    @property
    def export_check_log(self) -> Path:
        """What vLLM said when it last completed the exported model."""
        return self.logs / "export_check.log"

    @property
    def resolved_config(self) -> Path:
        return self.root / "resolved.yaml"


def stop_request_in(stage_dir: Path) -> Path:
    """The stop request of the training stage, or the trial, whose directory is `stage_dir`."""
    return stage_dir / "stop.json"
