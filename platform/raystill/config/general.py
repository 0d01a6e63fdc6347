"""Sections that every stage shares: run, device, cuda, cluster, training, datasets, prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.section import Section

Count = Annotated[int, Field(gt=0)]
_Label = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$",
        title="letters and digits, with dots, dashes, underscores and slashes between them",
    ),
]
NodeLabels = Annotated[dict[_Label, _Label], Field(min_length=1)]
WorkerRange = Annotated[list[Count], Field(min_length=2, max_length=2)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Parallelism = Literal["auto", "ddp", "fsdp"]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PathText = Annotated[
    str,
    Field(
        min_length=1,
        pattern=r"^([^/\x00]{0,255}/)*[^/\x00]{0,255}$",
        title="a path whose parts have at most 255 characters",
    ),
]


class RunSection(Section):
    """`run`: the name, the place and the seed of a run."""

    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        title="letters, digits, dots, dashes and underscores, at most 100, beginning with a letter or digit",
        description="Name of the run; its directory.",
    )
    dir: PathText = Field("runs", description="Directory that holds runs.")
    seed: Seed = Field(0, description="Seed of splits, sampling, initial weights and data order.")


class DeviceSection(Section):
    """`device`: where models run."""

    type: Literal["cuda", "cpu", "auto"] = Field("auto", description="auto picks CUDA where there is one.")


class CudaSection(Section):
    """`cuda`: settings of the CUDA allocator and matrix products."""

    cuda_alloc_conf: str = Field(
        "expandable_segments:True", min_length=1, description="Exported as PYTORCH_CUDA_ALLOC_CONF."
    )
    allow_tf32: bool = Field(True, description="TensorFloat-32 in matrix products on Ampere and later.")


class ClusterSection(Section):
    """`cluster`: the Ray cluster that a run uses."""

    address: str | None = Field(
        None,
        description="Ray address to join; unset joins RAY_ADDRESS if that is set, else starts a local Ray.",
    )
    num_cpus: Count | None = Field(None, description="Logical CPUs of a local Ray; unset means all cores.")
    teacher_labels: NodeLabels | None = Field(
        None,
        description="Labels of a cluster's nodes that engines run on, such as {market-type: spot}; unset: "
        "any node. A local Ray pays no heed.",
    )
    training_labels: NodeLabels | None = Field(
        None,
        description="The same for training workers and trials, such as {market-type: on-demand}; also for "
        "evaluation and export where the driver's own node can't run them.",
    )


class CheckpointCleanup(Section):
    """`training.checkpoint_cleanup`: what is kept besides the milestones (10/25/50/75/90/100 %)."""

    max_checkpoints: Count = Field(3, description="Most recent checkpoints kept besides milestones.")
    min_free_space_gb: float = Field(
        50.0, ge=0.0, description="Below this much free disk the recent count falls step by step to 1."
    )
    keep_best: Annotated[int, Field(ge=0)] = Field(
        0, description="Best checkpoints by `metric` kept besides milestones and recent ones."
    )
    metric: str = Field(
        "eval/loss",
        pattern=r"^(eval|train)/[a-z0-9_/]+$",
        title="a name of metrics.jsonl, beginning with eval/ or train/",
        description="What keep_best compares: a metric measured at the step that is saved.",
    )
    mode: Literal["min", "max"] = Field("min", description="Which values of `metric` are the best.")


class TrainingSection(Section):
    """`training`: what all training stages share; a stage's own value wins."""

    steps: Count | None = Field(None, description="Optimizer steps; unset means epochs decide.")
    save_every: Count = Field(100, description="Optimizer steps between checkpoints.")
    log_every: Count = Field(10, description="Optimizer steps between metric lines.")
    warmup_ratio: float = Field(
        0.03, ge=0.0, lt=1.0, description="Share of steps with a rising learning rate."
    )
    lr_schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="After the warm-up.")
    min_lr_ratio: float = Field(0.1, ge=0.0, le=1.0, description="Final learning rate / peak learning rate.")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay (matrices only).")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW: memory of the gradient's mean.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW: memory of its square.")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Gradient norm is clipped to this.")
    max_seq_len: Count = Field(
        1024, description="Tokens of prompt + completion; longer rows are left out and counted."
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Rows of a step lie end to end, none seeing another, instead of being padded; auto: "
        "on GPUs, where the model allows it and the teacher's signals are stored.",
    )
    max_nonfinite_steps: Count = Field(
        10, description="Consecutive skipped non-finite steps before stopping."
    )
    spike_threshold: float = Field(
        20.0,
        ge=0.0,
        description="A step is skipped if its gradient norm is this many robust standard deviations above "
        "the median of recent ones, and twice that median; 0 skips none.",
    )
    max_spike_steps: Count = Field(
        3, description="Spikes skipped in a row before a step is taken all the same."
    )
    num_workers: Count | WorkerRange = Field(
        1,
        description="Data-parallel training workers; [min, max]: as many as the cluster has room for, and "
        "fewer or more as nodes go and come. The rows of a step are those of the largest number.",
    )
    cpus_per_worker: Count | None = Field(
        None, description="CPUs of a training worker; unset shares all cores."
    )
    parallelism: Parallelism = Field(
        "auto",
        description="How several workers hold the model: ddp, each whole; fsdp, each a part (FSDP2). auto: "
        "fsdp where weights, gradients and moments would take more than 60 % of a GPU.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: a third more time, less memory."
    )
    checkpoint_cleanup: CheckpointCleanup = Field(default_factory=CheckpointCleanup)
    checkpoint_copies: PathText | None = Field(
        None,
        description="s3:// or gs:// address below which every checkpoint that is kept is copied as well, in "
        "<run.name>/<stage>; a run whose directory has lost its checkpoints goes on from there. Not those of "
        "a sweep's trials.",
    )


class DatasetSection(Section):
    """One of `datasets`: a prompt dataset by hub name or local path."""

    name: str = Field(min_length=1, description="Hub id, or a label when external_local_path is given.")
    key: str = Field(min_length=1, description="Column that holds the instruction.")
    subset: str = Field("default", min_length=1, description="Hub configuration name.")
    external_local_path: PathText | None = Field(
        None, description="Local file or directory used instead of the hub."
    )


class PromptSource(Section):
    """One of `prompts.sources`: a file or directory of prompts, with its shape."""

    path: PathText = Field(description="JSONL, Parquet or CSV file, HF dataset directory, or source tree.")
    format: Literal["auto", "jsonl", "parquet", "csv", "hf", "python_source"] = Field(
        "auto", description="auto goes by the name; python_source builds prompts from Python files."
    )
    shape: Literal["auto", "messages", "prompt", "instruction", "alpaca", "sharegpt"] = Field(
        "auto", description="How a row says its prompt; auto looks at the columns."
    )
    key: str | None = Field(
        None, description="Column that holds the prompt, where it isn't the shape's own name."
    )
    id_column: str | None = Field(
        None,
        description="Column with unique ids; unset: a column `id` if it is unique, else hashes of content.",
    )
    limit: Count | None = Field(None, description="Take only the first rows.")


class PromptsSection(Section):
    """`prompts`: where prompts come from and how they are split."""

    sources: list[PromptSource] = Field(default_factory=list, description="Prompt files, read in order.")
    system: str | None = Field(None, description="System message put before prompts that have none.")
    eval_size: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Prompts held out for evaluation; unset means eval_fraction."
    )
    eval_fraction: Fraction = Field(
        0.02, description="Chance of a prompt to be held out; it never changes as other prompts come and go."
    )
    split_seed: Seed = Field(0, description="Seed of the split; equal prompts always fall on the same side.")
    over_length: Literal["keep", "drop", "error"] = Field(
        "keep", description="What to do with prompts longer than teacher.base.prompt_length."
    )
    max_bad_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="Unreadable rows that are rejected with a reason before the stage stops."
    )
