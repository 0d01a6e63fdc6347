"""What an export proves about itself: `export.json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
VERDICT_NAME = "export.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Record):
    """The first token where two greedy completions part, and the log probability of either choice there.

    Both logprobs are transformers', after the same prefix; `position` counts completion tokens from 0.
    """

    prompt_id: str
    position: int
    transformers_token: int | None
    vllm_token: int | None
    transformers_logprob: float | None
    vllm_logprob: float | None


class Verification(_Record):
    """Greedy completions of vLLM on the exported files against transformers on the trained model.

    `equal + ties == prompts` where `verified`. A tie is a pair that parts at two tokens whose logprobs differ
    by less than `tie_tolerance`; the rest of such a pair can't be compared.
    """

    verified: bool
    reason: str
    prompts: int = 0
    equal: int = 0
    ties: list[Difference] = []
    tokens: int = 0
    tie_tolerance: float | None = None
    largest_tie: float | None = None
    engine: str | None = None


class Verdict(_Record):
    """Where an export comes from, what made it and whether it was verified."""

    schema_version: int = SCHEMA_VERSION
    source_stage: str
    source_sha256: dict[str, str]
    exported_sha256: dict[str, str]
    dtype: str
    parameters: int
    packages: dict[str, str]
    verification: Verification
