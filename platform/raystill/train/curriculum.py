"""What a curriculum asks for, resolved; light, because plans read it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curriculum:
    """`max_lengths[i]` holds until step `ends[i]` (the last one for good); shares by source name."""

    max_lengths: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    mix_end: Mapping[str, float] = field(default_factory=dict)
