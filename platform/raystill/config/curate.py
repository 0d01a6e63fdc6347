"""`curate`: which of the teacher's outputs a student trains on. Unset: all of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count, PathText, Seed
from raystill.config.section import Section

Share = Annotated[float, Field(gt=0.0, le=1.0)]
PersonalDataMode = Literal["ignore", "count", "redact", "drop"]
BestOf = Literal["judge", "logprob"]
Ending = Literal["stop", "length", "tool_calls", "content_filter"]


class NearDuplicatesSection(Section):
    """`curate.near_duplicates`: MinHash over five-word shingles of prompt and completion."""

    threshold: Share = Field(0.8, description="Jaccard similarity from which two rows are the same.")
    num_permutations: Annotated[int, Field(ge=16, le=1024)] = Field(
        128, description="Hash functions of a signature; four bytes each per row while the stage runs."
    )


class LengthSection(Section):
    """`curate.length`: bounds on a completion, in tokens."""

    min_tokens: Annotated[int, Field(ge=0)] = Field(0, description="Shorter completions are dropped.")
    max_tokens: Count | None = Field(None, description="Longer completions are dropped; unset: no bound.")


class ToolCallsSection(Section):
    """`curate.tool_calls`: calls must name a known tool and have arguments that fit its schema."""

    schema_path: PathText | None = Field(
        None, description="JSON file of the tools; unset: teacher.base.tool_schema."
    )


class DecontaminateSection(Section):
    """`curate.decontaminate`: no training row may contain a held-out prompt or reference."""

    ngram: Annotated[int, Field(ge=3, le=64)] = Field(
        13, description="Words per n-gram; texts that are shorter must be equal as a whole."
    )
    threshold: Share = Field(
        0.5, description="Share of a held-out text's n-grams in one row from which the row is dropped."
    )
    against: list[PathText] = Field(
        default_factory=list,
        description="More held-out sets: every text of these JSONL, Parquet or text files.",
    )


class JudgeScoresSection(Section):
    """`curate.judge`: scores that a judge gave, in the stage grade or in a file."""

    scores: PathText | None = Field(
        None,
        description="JSONL or Parquet with `key` (or `prompt_id` and `sample_index`) and a score per row; "
        "unset: what `grade` gave.",
    )
    column: str = Field("score", min_length=1, description="Column that holds the score.")
    min_score: float | None = Field(None, description="Rows below it are dropped; unset: none.")
    missing: Literal["drop", "keep", "error"] = Field(
        "error", description="What to do with rows that have no score."
    )


class MixtureSource(Section):
    """One of `curate.mixture.sources`."""

    source: str = Field(min_length=1, description="A prompt source, as prepare names it in the prompt table.")
    weight: Annotated[float, Field(gt=0.0)] = Field(description="Its share relative to the other weights.")


class MixtureSection(Section):
    """`curate.mixture`: shares of the prompt sources, reached by leaving rows out."""

    sources: list[MixtureSource] = Field(
        min_length=1, description="Sources with their weights; rows of others are dropped."
    )
    max_rows: Count | None = Field(None, description="At most so many rows; unset: as many as there are.")
    seed: Seed = Field(0, description="Decides which rows of a source are taken.")


def _whole_completions() -> list[Ending]:
    return ["stop", "tool_calls"]


class CurateSection(Section):
    """`curate`: filters over the teacher's outputs, in this order; held-out prompts are never dropped."""

    drop_empty: bool = Field(True, description="Drop completions without text and without a tool call.")
    finish_reasons: list[Ending] = Field(
        default_factory=_whole_completions,
        min_length=1,
        description="How a completion may have ended.",
    )
    length: LengthSection = Field(default_factory=LengthSection)
    drop_refusals: bool = Field(True, description="Drop completions that begin with an English refusal.")
    tool_calls: ToolCallsSection | None = None
    personal_data: PersonalDataMode = Field(
        "ignore",
        description="E-mail addresses, phone numbers, IBANs, card numbers, IPv4 addresses, US social "
        "security numbers and API keys in completions: ignore, count, drop, or redact (no KD then).",
    )
    decontaminate: DecontaminateSection | None = None
    judge: JudgeScoresSection | None = None
    exact_duplicates: bool = Field(
        True, description="Keep one of rows whose prompt and completion are equal but for case and spaces."
    )
    near_duplicates: NearDuplicatesSection | None = None
    best_of_n: BestOf | None = Field(
        None, description="Keep one row per prompt: the judge's best, or the one with the best mean logprob."
    )
    mixture: MixtureSection | None = None
