"""The base of every configuration section, and how a field says that it does not act yet."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

NOT_YET = "not_supported_yet"


class Section(BaseModel):
    """A frozen, strict block of keys. Unknown keys are errors; nothing is coerced between types.

    Validators are built at first use (`defer_build`, and sections default through a factory), which halves
    the import time of every command.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        defer_build=True,
    )


def not_yet(default: Any, description: str) -> Any:
    """A documented key that nothing honours yet: setting it to anything but `default` is refused.

    The refusal happens when a stage that would need the key is planned (`raystill.config.support`), so a
    file that carries such keys still loads, and is never silently ignored.
    """
    return Field(default, description=description, json_schema_extra={NOT_YET: True})
