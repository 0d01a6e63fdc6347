"""`train.distillation.teacher`: where the distributions that the student learns from come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count
from raystill.config.section import Section

GivenSource = Literal["auto", "store", "online", "on_policy"]

TeacherWeights = Literal["float32", "bfloat16", "4bit"]

# Words that name a model of the run; anything else is a hub id or a directory.
ASSISTANT, TEACHER, STUDENT = "assistant", "teacher", "student"


class KdModel(Section):
    """One of `train.distillation.teacher.models`: a frozen model beside the student in every worker."""

    name: str = Field(
        min_length=1,
        description="assistant (the SFT stage's model), teacher (teacher.open), student (the student's own "
        "first weights: its base with the LoRA adapter off), a local directory or a hub id.",
    )
    weight: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="Share in the mixture of the models that teach a row; shares are normalised."
    )
    sources: list[str] = Field(
        default_factory=list, description="Prompt sources whose rows it teaches; empty: all."
    )
    weights: TeacherWeights = Field(
        "float32",
        description="How its weights are held. 4bit: by bitsandbytes, as assistant.quantization says, else "
        "nf4 with double quantisation.",
    )


class Rollouts(Section):
    """`train.distillation.teacher.rollouts`: completions that the student makes while it learns."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="vllm: a process of its own beside the trainer, its weights refreshed in place.",
    )
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of a step's rows that are rollouts; the rest keep the store's text."
    )
    sync_every: Count = Field(
        1, description="Optimizer steps between refreshes of the weights that rollouts are made with."
    )
    max_new_tokens: Count = Field(128, description="Longest rollout.")
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = Field(1.0, description="Of sampling.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Nucleus of sampling.")
    batch_size: Count = Field(64, description="Rollouts in flight.")
    memory_gib: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="vLLM: memory of the KV cache; the weights come on top."
    )


class TeacherWorker(Section):
    """`train.distillation.teacher.worker`: the models in a process of their own beside each training worker.

    The same numbers as in process; the models' forward passes overlap with the student's.
    """

    num_cpus: Count = Field(1, description="CPUs that each process takes from Ray, and its threads.")
    num_gpus: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="GPUs of each process; unset: one where training has one, 0: a CPU computes."
    )


class KdTeacher(Section):
    """`train.distillation.teacher`."""

    source: GivenSource = Field(
        "auto",
        description="store: stored signals, no teacher in memory. online: models in process. on_policy: "
        "models in process judge what the student writes. auto: online where SFT trains an assistant.",
    )
    models: list[KdModel] = Field(
        default_factory=list,
        description="Online teachers; unset: the assistant where SFT trains one, else teacher.open.",
    )
    num_logprobs: Count | None = Field(
        None,
        description="Online: compare at the k best tokens of the teacher and of the student, and one bucket "
        "for the rest; unset: whole distributions.",
    )
    worker: TeacherWorker | None = Field(
        None, description="A process of their own for the models; unset: they share the training worker's."
    )
    rollouts: Rollouts = Field(default_factory=Rollouts)
