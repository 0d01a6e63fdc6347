"""`assistant` and `student`: the models that are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count, PathText
from raystill.config.section import Section
from raystill.config.teacher import Attention

SpecialToken = Annotated[str, Field(min_length=1, max_length=100)]

HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=96)]

TaskType = Literal["CAUSAL_LM"]
LoraBias = Literal["none", "all", "lora_only"]


class AssistantModel(Section):
    """`assistant.model`."""

    name: str = Field(min_length=1, description="Hub id or local directory (safetensors).")
    save_path: PathText | None = Field(None, description="Directory that a hub model is downloaded into.")
    attn_implementation: Attention = Field("sdpa", description="flash_attention_2 falls back to sdpa.")
    bfloat16: bool = Field(
        True,
        description="Train in bfloat16 on a GPU that has it, where train.sft names no type; a CPU trains in "
        "float32 unless train.sft.bfloat16 says otherwise.",
    )


class AssistantTokenizer(Section):
    """`assistant.tokenizer`."""

    padding_side: Literal["left", "right"] = Field(
        "left", description="Side of padding in batched generation."
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of generated text.")
    additional_special_tokens: list[SpecialToken] = Field(
        default_factory=list,
        description="Tokens to add to its vocabulary; a new one starts as the mean of the others.",
    )


class Quantization(Section):
    """`assistant.quantization`: the base in 4 bits while its adapters train (QLoRA), by bitsandbytes.

    The trained model is merged from the values that the 4-bit weights stand for, in full precision.
    """

    load_in_4bit: bool = Field(False, description="4-bit base weights; needs the package bitsandbytes.")
    bfloat16: bool = Field(
        True, description="Multiply with the 4-bit weights in bfloat16; false: in float32."
    )
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantise the quantisation constants too.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit data type.")


class AssistantLora(Section):
    """`assistant.lora`: the default for `train.sft.peft.lora`."""

    lora_r: Count = Field(8, description="Rank.")
    lora_alpha: Count = Field(16, description="Scale.")
    lora_dropout: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.05, description="Dropout in LoRA layers.")
    bias: LoraBias = Field("none", description="Which biases train.")
    task_type: TaskType = Field("CAUSAL_LM", description="PEFT task.")


class AssistantInference(Section):
    """`assistant.inference`."""

    max_new_tokens: Count = Field(1024, description="Longest completion in evaluation.")


class AssistantSection(Section):
    """`assistant`: the model between teacher and student; where it is given, `sft` trains it."""

    model: AssistantModel
    tokenizer: AssistantTokenizer = Field(default_factory=AssistantTokenizer)
    quantization: Quantization | None = None
    lora: AssistantLora | None = None
    inference: AssistantInference = Field(default_factory=AssistantInference)


class StudentSection(Section):
    """`student`: from a base checkpoint, cut from one, or fresh from architecture keys."""

    base_model_name: str | None = Field(
        None, description="Hub id or local directory (safetensors) to start from."
    )
    init: Literal["auto", "base", "fresh", "shrink"] = Field(
        "auto",
        description="base: its weights. fresh: new weights from the keys below. shrink: the base cut to the "
        "keys below, by layers and by the largest weights.",
    )
    adapter: PathText | None = Field(
        None, description="Directory of a PEFT adapter that is merged into the base before training."
    )
    save_path: PathText | None = Field(None, description="Where the exported student is also written.")
    model_type: Literal["qwen2", "llama"] | None = Field(
        None, description="Architecture family of a fresh student; unset: qwen2."
    )
    hidden_size: Count | None = Field(None, description="Width.")
    intermediate_size: Count | None = Field(None, description="Feed-forward width.")
    num_hidden_layers: Count | None = Field(None, description="Transformer blocks.")
    num_attention_heads: Count | None = Field(None, description="Attention heads.")
    num_key_value_heads: Count | None = Field(
        None, description="Key/value heads; unset: the heads of a fresh student, a shrunk one chooses."
    )
    head_dim: Count | None = Field(None, description="Width of a head; unset: hidden_size / heads.")
    max_position_embeddings: Count | None = Field(
        None, description="Longest sequence in tokens; unset: the base's, 1024 of a fresh student."
    )
    vocab_size: Count | None = Field(
        None, description="Vocabulary of a fresh student; unset: the tokenizer's. More is padding."
    )
    rope_theta: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Base of rotary positions; unset: the base's, 10000 of a fresh student."
    )
    initializer_range: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.02, description="Standard deviation of a fresh student's weights; narrow models like more."
    )
    tie_word_embeddings: bool | None = Field(
        None, description="Share input and output embeddings; unset: as the base does, a fresh student does."
    )
    tokenizer: PathText | None = Field(
        None, description="Tokenizer directory; unset: the base model's or the teacher's."
    )
    additional_special_tokens: list[SpecialToken] = Field(
        default_factory=list,
        description="Tokens to add to its vocabulary; a new one starts as the mean of the others. With LoRA "
        "the embeddings then train in full.",
    )
    repo: HubId | None = Field(
        None,
        description="Hub repository that the student is meant for, as owner/name: its card loads it from "
        "there, and export ends with the command that uploads it. Nothing is uploaded by itself.",
    )
