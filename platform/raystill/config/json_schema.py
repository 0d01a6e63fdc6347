"""The schema for editors: `configs/schema.json` is `render_json_schema()`, and a test keeps it so."""

from __future__ import annotations

import json
from typing import Any

from raystill.config.schema import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def build_json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a whole configuration file."""
    return {"$schema": DIALECT, **Config.model_json_schema(), "title": "raystill configuration"}


def render_json_schema() -> str:
    """The schema as the text of `configs/schema.json`."""
    return json.dumps(build_json_schema(), indent=2, ensure_ascii=False) + "\n"
