"""`curriculum`: which rows a training stage sees when, by length and by source."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raystill.config.general import Count
from raystill.config.section import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CurriculumSection(Section):
    """`curriculum`: a length curriculum (`seq_lengths` with `schedule`), a mixture of sources (`mix`)."""

    seq_lengths: list[Count] = Field(
        default_factory=list,
        description="Longest rows, in tokens, of each phase; longer ones wait for their phase.",
    )
    schedule: list[Count] = Field(
        default_factory=list, description="Optimizer step at which each phase ends; the last one goes on."
    )
    mix: dict[str, Share] = Field(
        default_factory=dict,
        description="Share of a step's rows by prompt source; what is left goes to the sources not named, "
        "by their number of rows. Unset: every row once an epoch.",
    )
    mix_end: dict[str, Share] = Field(
        default_factory=dict, description="Shares at the last step, approached linearly; unset: `mix`."
    )
