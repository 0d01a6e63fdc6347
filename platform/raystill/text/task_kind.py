"""How a completion is judged."""

from __future__ import annotations

from typing import Literal

TaskKind = Literal["text", "exact", "tool_call"]
