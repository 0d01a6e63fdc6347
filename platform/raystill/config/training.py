"""`train` and `losses`: the two training stages and what they minimise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count, Fraction, PathText, Seed
from raystill.config.kd_teacher import KdTeacher
from raystill.config.models import LoraBias, TaskType
from raystill.config.section import Section

ReportTo = Literal["none", "mlflow", "tensorboard", "wandb"]
EvalStrategy = Literal["no", "epoch", "steps"]


class Experiment(Section):
    """`train.*.experiment`: what the experiment tracker is told."""

    name: str = Field(min_length=1, description="Experiment.")
    path: PathText = Field(
        ".logs/mlruns", description="Directory that a local store of runs, or of event files, is made in."
    )
    run_name: str = Field(min_length=1, description="Run.")
    set_tracking_uri: str = Field(
        "file:.logs/mlruns", min_length=1, description="MLflow: where runs are kept, a directory or a server."
    )
    dataset_artifact_path: str = Field(
        "dataset", min_length=1, description="Where the run keeps the data's description."
    )
    model_artifact_path: str = Field(
        "huggingface_model", min_length=1, description="Where the run keeps the trained model (a copy)."
    )
    registered_model_name: str | None = Field(
        None, description="Name under which the model is registered; unset: it isn't."
    )
    dataset_tags: dict[str, str] = Field(default_factory=dict, description="Tags on the data.")


class SftDataset(Section):
    """`train.sft.dataset`."""

    seed: Seed = Field(19, description="Seed of the train/test split and of the data order.")
    test_size: Fraction = Field(0.1, description="Share of training rows held out for the evaluation loss.")
    train_batched: Literal[True] = Field(
        True, description="Only true: training rows are tokenised in batches; one by one gives the same rows."
    )
    eval_batched: Literal[True] = Field(
        True, description="Only true: held-out rows are tokenised in the training rows' batches."
    )


class SftTokenizer(Section):
    """`train.sft.tokenizer`."""

    truncation: bool = Field(
        False, description="Cut rows longer than max_length instead of leaving them out."
    )
    max_length: Count | None = Field(None, description="Tokens per row; unset: training.max_seq_len.")
    mlm: Literal[False] = Field(
        False, description="Only false: a causal model predicts the next token, it fills no masks."
    )


class LoraSection(Section):
    """`train.*.peft.lora`."""

    r: Count = Field(16, description="Rank.")
    lora_alpha: Count = Field(32, description="Scale.")
    lora_dropout: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.05, description="Dropout in LoRA layers.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Modules that get adapters."
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="Modules trained in full beside the adapters."
    )
    task_type: TaskType = Field("CAUSAL_LM", description="PEFT task.")
    bias: LoraBias = Field("none", description="Which biases train.")


class PeftSection(Section):
    """`train.*.peft`: unset trains all weights."""

    lora: LoraSection | None = None


class StageCommon(Section):
    """Keys that both training stages have."""

    steps: Count | None = Field(None, description="Optimizer steps; wins over training.steps and epochs.")
    num_train_epochs: Count = Field(1, description="Passes over the data, where steps are not given.")
    per_device_train_batch_size: Count = Field(1, description="Rows per micro-batch and worker.")
    gradient_accumulation_steps: Count = Field(1, description="Micro-batches per optimizer step.")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(1e-4, description="Peak learning rate.")
    overwrite_output_dir: bool = Field(
        True, description="Replace the copy at save_path/output_dir of an earlier run."
    )
    logging_steps: Count | None = Field(None, description="Wins over training.log_every.")
    save_steps: Count | None = Field(None, description="Wins over training.save_every.")
    report_to: ReportTo = Field(
        "none", description="Experiment tracker beside metrics.jsonl. wandb is refused."
    )
    experiment: Experiment | None = Field(
        None, description="The tracker's names; unset: run.name and the stage's label."
    )
    peft: PeftSection = Field(default_factory=PeftSection)


class SftSection(StageCommon):
    """`train.sft`: supervised fine-tuning on the teacher's completions."""

    model_name: str = Field("Assistant", min_length=1, description="Label of the trained model in reports.")
    save_path: PathText | None = Field(None, description="Where the trained model is also written.")
    bfloat16: bool = Field(False, description="bfloat16 autocast.")
    fp16: bool = Field(False, description="float16 autocast with loss scaling; CUDA only.")
    loss_on: Literal["completion", "assistant"] = Field(
        "completion",
        description="Tokens that carry loss: the teacher's completion, or also the earlier assistant turns "
        "of a conversation.",
    )
    eval_strategy: EvalStrategy = Field("epoch", description="When the held-out loss is measured.")
    dataset: SftDataset = Field(default_factory=SftDataset)
    tokenizer: SftTokenizer = Field(default_factory=SftTokenizer)


class KdLoss(Section):
    """`train.distillation.knowledgedistillation.loss`."""

    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        1.0, description="KD temperature, applied to teacher and student; the term is multiplied by T^2."
    )
    reduction: Literal["batchmean", "sum", "mean", "none"] = Field(
        "batchmean", description="batchmean and mean: per completion token. sum and none are refused."
    )


class KnowledgeDistillation(Section):
    """`train.distillation.knowledgedistillation`: loss = (1 - weight) * CE + weight * KD."""

    weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.5, description="Share of the KD term.")
    loss: KdLoss = Field(default_factory=KdLoss)


class DistillationSection(StageCommon):
    """`train.distillation`: the student learns a teacher's distributions."""

    output_dir: PathText | None = Field(None, description="Where the trained student is also written.")
    bf16: bool = Field(False, description="bfloat16 autocast.")
    fp16: bool = Field(False, description="float16 autocast with loss scaling; CUDA only.")
    evaluation_strategy: EvalStrategy = Field("epoch", description="When the held-out loss is measured.")
    run_name: str = Field(
        "KnowledgeDistillation", min_length=1, description="Label of the student in reports."
    )
    init: Literal["auto", "sft", "student"] = Field(
        "auto",
        description="Start from the SFT checkpoint or `student`; auto: sft where that stage trained it.",
    )
    seed: Seed = Field(42, description="Seed of the train/test split and of the data order.")
    test_size: Fraction = Field(0.1, description="Share of training rows held out for the evaluation loss.")
    knowledgedistillation: KnowledgeDistillation = Field(default_factory=KnowledgeDistillation)
    teacher: KdTeacher = Field(default_factory=KdTeacher)


class TrainSection(Section):
    """`train`: a stage that is not given does not run."""

    sft: SftSection | None = None
    distillation: DistillationSection | None = None
