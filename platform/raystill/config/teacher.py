"""`teacher`: the model whose outputs are bought or computed, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.closed_teacher import ClosedTeacher
from raystill.config.general import Count, PathText
from raystill.config.section import Section
from raystill.config.teacher_fields import DataSection, Temperature, TopP

Attention = Literal["eager", "sdpa", "flash_attention_2"]
EngineRange = Annotated[list[Count], Field(min_length=2, max_length=2)]


class TeacherBase(Section):
    """`teacher.base`: what open and closed teachers share."""

    prompt_length: Count | None = Field(
        None,
        description="Soft limit of a prompt's own tokens, without chat template and prompts.system; counted "
        "and reported, and prompts.over_length decides.",
    )
    from_store: PathText | None = Field(
        None,
        description="Teacher store whose answers are taken as they are, whoever gave them: its conversations "
        "take the place of prompts.sources and datasets, nothing is generated, and teacher.open only scores.",
    )
    output_path: PathText | None = Field(
        None, description="JSONL export of the teacher's outputs; unset puts it into the run directory."
    )
    num_samples: Count = Field(1, description="Completions per training prompt; held-out prompts get one.")
    reasoning: Literal["drop", "keep", "train"] = Field(
        "keep",
        description="A reasoning teacher's thoughts: drop them, keep them beside the completion, or train on "
        "them as part of it.",
    )
    cut_off: Literal["train", "leave_out"] = Field(
        "leave_out",
        description="Completions that max_new_tokens cut off: leave them out of training, or train on them "
        "as far as they go, without an end. They are stored and counted either way.",
    )
    tool_schema: PathText | None = Field(
        None, description="JSON file of the tools that completions may call; completions are forced into it."
    )


class OpenModel(Section):
    """`teacher.open.model`: which checkpoint, and how it is loaded."""

    name: str = Field(min_length=1, description="Hub id or local directory (safetensors).")
    revision: str | None = Field(
        None, description="Commit or tag on the hub; required with trust_remote_code."
    )
    save_path: PathText | None = Field(None, description="Directory that a hub model is downloaded into.")
    trust_remote_code: bool = Field(False, description="Run code of the repository; needs a pinned revision.")
    attn_implementation: Attention = Field(
        "sdpa", description="Attention of the transformers engine; flash_attention_2 falls back to sdpa."
    )
    bfloat16: bool = Field(True, description="bfloat16 weights; false means float32.")


class OpenPipeline(Section):
    """`teacher.open.pipeline`: sampling and speed of an open teacher."""

    max_new_tokens: Count = Field(512, description="Longest completion in tokens.")
    temperature: Temperature = Field(0.3, description="Sampling temperature; above 0 with do_sample.")
    top_p: TopP = Field(0.95, description="Nucleus sampling.")
    top_k: Annotated[int, Field(ge=0)] = Field(50, description="Sampling cutoff; 0 means none.")
    use_cache: bool = Field(True, description="vLLM: prefix caching. transformers: the key/value cache.")
    do_sample: bool = Field(True, description="false means greedy decoding.")
    batch_size: Count | None = Field(
        None,
        description="transformers: prompts per batch. vLLM: rows in flight. Unset: the engine's own.",
    )
    resume: bool = Field(True, description="false starts a new store and keeps the old one aside.")


class OpenTokenizer(Section):
    """`teacher.open.tokenizer`: how prompts become tokens and completions become text."""

    additional_special_tokens: list[str] = Field(
        default_factory=list, description="Extra stop tokens; they must be in the vocabulary."
    )
    padding_side: Literal["left", "right"] = Field("left", description="transformers engine only.")
    add_generation_prompt: bool = Field(True, description="End the prompt with the assistant's header.")
    tokenize: Literal[True] = Field(True, description="Only true: engines take token ids, never text.")
    padding: bool = Field(True, description="transformers engine only: pad a batch, or run rows one by one.")
    truncation: bool = Field(
        False, description="Cut prompts that exceed the context instead of rejecting them."
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the completion's text.")
    clean_up_tokenization_spaces: bool = Field(False, description="Tidy spaces in the completion's text.")
    use_fast: bool = Field(True, description="Fast tokenizer implementation.")


class OpenTeacher(Section):
    """`teacher.open`: a teacher with open weights."""

    model: OpenModel
    pipeline: OpenPipeline = Field(default_factory=OpenPipeline)
    tokenizer: OpenTokenizer = Field(default_factory=OpenTokenizer)
    data: DataSection = Field(default_factory=DataSection)


class SignalsSection(Section):
    """`teacher.signals`: the distributions stored beside the text."""

    kind: Literal["topk", "sampled", "hidden"] = Field(
        "topk",
        description="topk: the K best and the tail. sampled: draws from the whole distribution. hidden: last "
        "hidden states. The last two are made by score, with the transformers engine.",
    )
    num_draws: Annotated[int, Field(gt=0, le=65_535)] = Field(
        50, description="sampled: draws per completion token."
    )
    num_logprobs: Annotated[int, Field(ge=0, le=256)] = Field(
        20, description="K: logprobs stored per completion token; 0 stores text only."
    )
    capture: Literal["auto", "generation", "score"] = Field(
        "auto",
        description="generation: with the text. score: teacher forcing afterwards. auto: the engine's best.",
    )
    probe_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="Rows on which score compares the engine with another one; 0 compares nothing."
    )


class VllmSection(Section):
    """`teacher.vllm`: what only the vLLM engine has."""

    num_engines: Count | EngineRange = Field(
        1,
        description="Engines in the Ray Data actor pool; [min, max] lets the pool grow while rows wait and "
        "drain as they end.",
    )
    tensor_parallel_size: Count = Field(1, description="GPUs per engine.")
    max_num_seqs: Count = Field(256, description="Sequences that an engine decodes at once.")
    max_num_batched_tokens: Count | None = Field(
        None, description="Tokens per engine step; unset: vLLM's own."
    )
    max_model_len: Count | None = Field(None, description="Context in tokens; unset: the model's own.")
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9, description="Share of GPU memory."
    )
    kv_cache_gib: Annotated[float, Field(gt=0.0)] = Field(2.0, description="Key/value cache on CPU in GiB.")
    enforce_eager: bool = Field(True, description="No graph compilation: starts faster.")
    max_restarts: Annotated[int, Field(ge=0, le=100)] = Field(
        2,
        description="Deaths of an engine with the same rows in flight before those run a few at a time, and "
        "the one that kills it alone is rejected (engine_died).",
    )
    stall_timeout_s: Annotated[float, Field(gt=0.0)] = Field(
        1800.0,
        description="An engine that finishes no row for so many seconds counts as dead and is started again.",
    )


class StoreSection(Section):
    """`teacher.store`: where teacher outputs live and how they are cut into files."""

    path: PathText | None = Field(
        None, description="Store directory or s3:// address, shared by runs; unset: inside the run directory."
    )
    num_partitions: Annotated[int, Field(gt=0, le=4096)] = Field(8, description="Partitions by key hash.")
    rows_per_part: Count = Field(256, description="Rows per committed Parquet part.")


class TeacherSection(Section):
    """`teacher`: an open or a closed teacher, or a closed one that answers and an open one that scores."""

    engine: Literal["auto", "vllm", "transformers", "openai", "fake"] = Field(
        "auto",
        description="auto: vllm where it is installed, else transformers; openai for a closed teacher, which "
        "answers beside any engine: that one then runs `open` to score.",
    )
    base: TeacherBase = Field(default_factory=TeacherBase)
    open: OpenTeacher | None = Field(None, description="A teacher with open weights.")
    closed: ClosedTeacher | None = Field(
        None, description="A teacher behind an API; with `open` beside it, that one scores the answers."
    )
    signals: SignalsSection = Field(default_factory=SignalsSection)
    vllm: VllmSection = Field(default_factory=VllmSection)
    store: StoreSection = Field(default_factory=StoreSection)
