"""`evaluation` and `export`: what is measured and what is shipped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raystill.config.general import Count
from raystill.config.section import Section, not_yet


class EvaluationSection(Section):
    """`evaluation`: the gap report on held-out prompts."""

    max_samples: Count | None = Field(None, description="Held-out prompts that are evaluated; unset: all.")
    min_samples: Count = Field(
        10, description="Fewer held-out prompts than this measure nothing: the stage fails."
    )
    max_new_tokens: Count | None = Field(
        None, description="Longest completion; unset: the teacher's max_new_tokens."
    )
    batch_size: Count = Field(64, description="Prompts per generation batch.")
    num_report_samples: Annotated[int, Field(ge=0)] = Field(8, description="Completions shown side by side.")


class ExportSection(Section):
    """`export`: the student as files that other programs load."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type of exported weights."
    )
    verify_prompts: Annotated[int, Field(ge=0)] = Field(
        20, description="Prompts whose greedy completions must be equal in vLLM and here; 0 skips the check."
    )
    onnx: dict[str, Any] | None = not_yet(None, "ONNX export.")
    coreml: dict[str, Any] | None = not_yet(None, "Core ML export.")
    gguf: dict[str, Any] | None = not_yet(None, "GGUF export.")
