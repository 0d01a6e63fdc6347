"""Field types and small sections that open and closed teachers share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import PathText
from raystill.config.section import Section

Temperature = Annotated[float, Field(ge=0.0, le=100.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
DownloadSize = Literal["16k", "32k", "64k"]


class DownloadSection(Section):
    """`teacher.*.data.download`: a prepared dataset instead of generating."""

    size: DownloadSize | None = Field(
        None,
        description="Variant of the prepared teacher dataset to fetch from the hub; it takes the place of "
        "prompts.sources and datasets, and nothing is generated.",
    )
    path: PathText | None = Field(
        None,
        description="Local copy of a prepared dataset (prompts with completions), instead of the hub: JSONL, "
        "Parquet, CSV, or a directory of such files.",
    )


class DataSection(Section):
    """`teacher.*.data`."""

    download: DownloadSection = Field(default_factory=DownloadSection)
