"""Field types and small sections that open and closed teachers share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.section import Section, not_yet

Temperature = Annotated[float, Field(ge=0.0, le=100.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
DownloadSize = Literal["16k", "32k", "64k"]


class DownloadSection(Section):
    """`teacher.*.data.download`: a prepared dataset instead of generating."""

    size: DownloadSize | None = not_yet(None, "Variant of a prepared teacher dataset to fetch.")


class DataSection(Section):
    """`teacher.*.data`."""

    download: DownloadSection = Field(default_factory=DownloadSection)
