"""`assistant` and `student`: the models that are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count, PathText
from raystill.config.section import Section, not_yet
from raystill.config.teacher import Attention

TaskType = Literal["CAUSAL_LM"]
LoraBias = Literal["none", "all", "lora_only"]


class AssistantModel(Section):
    """`assistant.model`."""

    name: str = Field(min_length=1, description="Hub id or local directory (safetensors).")
    save_path: PathText | None = Field(None, description="Directory that a hub model is downloaded into.")
    attn_implementation: Attention = Field("sdpa", description="flash_attention_2 falls back to sdpa.")
    bfloat16: bool = not_yet(
        True, "bfloat16 beside 4-bit weights; train.sft.bfloat16 sets the type of a step."
    )


class AssistantTokenizer(Section):
    """`assistant.tokenizer`."""

    padding_side: Literal["left", "right"] = Field(
        "left", description="Side of padding in batched generation."
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of generated text.")


class Quantization(Section):
    """`assistant.quantization`: 4-bit base weights (QLoRA)."""

    load_in_4bit: bool = not_yet(False, "4-bit base weights.")
    bfloat16: bool = not_yet(True, "Compute type of the 4-bit weights.")
    bnb_4bit_use_double_quant: bool = not_yet(True, "Quantise the quantisation constants too.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = not_yet("nf4", "4-bit data type.")


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
    """`student`: from a base checkpoint, or fresh from architecture keys."""

    base_model_name: str | None = Field(
        None, description="Hub id or local directory (safetensors) to start from."
    )
    init: Literal["auto", "base", "fresh", "shrink"] = Field(
        "auto",
        description="base: its weights. fresh: new weights from the keys below. shrink: not supported yet.",
    )
    save_path: PathText | None = Field(None, description="Where the exported student is also written.")
    model_type: Literal["qwen2", "llama"] = Field(
        "qwen2", description="Architecture family of a fresh student."
    )
    hidden_size: Count | None = Field(None, description="Width.")
    intermediate_size: Count | None = Field(None, description="Feed-forward width.")
    num_hidden_layers: Count | None = Field(None, description="Transformer blocks.")
    num_attention_heads: Count | None = Field(None, description="Attention heads.")
    num_key_value_heads: Count | None = Field(None, description="Key/value heads; unset equals the heads.")
    max_position_embeddings: Count = Field(1024, description="Longest sequence in tokens.")
    vocab_size: Count | None = Field(None, description="Vocabulary; unset: the tokenizer's.")
    rope_theta: Annotated[float, Field(gt=0.0)] = Field(10000.0, description="Base of rotary positions.")
    initializer_range: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.02, description="Standard deviation of a fresh student's weights; narrow models like more."
    )
    tie_word_embeddings: bool = Field(
        True, description="Share input and output embeddings of a fresh student."
    )
    tokenizer: PathText | None = Field(
        None, description="Tokenizer directory; unset: the base model's or the teacher's."
    )
    repo: str | None = not_yet(None, "Hub repository that the student is published to.")
