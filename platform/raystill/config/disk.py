"""The section `disk`: when little free space warns, and when it ends training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raystill.config.section import Section


class DiskSection(Section):
    """`disk`: the watch over every filesystem that a run uses."""

    hard_free_gb: float = Field(
        0.5,
        ge=0.0,
        description="With less free disk (GiB) where the run lies, training saves and stops with exit code "
        "4; 0 never.",
    )
    interval_s: Annotated[float, Field(gt=0.0)] = Field(
        5.0, description="Seconds between two looks at the filesystems."
    )
