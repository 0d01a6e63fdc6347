"""The editors' schema: committed, current, and of one mind with the loader."""

from __future__ import annotations

import json
from pathlib import Path

from raystill.config.json_schema import DIALECT, build_json_schema, render_json_schema
from raystill.config.keys import all_keys

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_committed_schema_is_current() -> None:
    committed = (CONFIGS / "schema.json").read_text(encoding="utf-8")
    assert committed == render_json_schema(), "write it again: raystill config schema > configs/schema.json"


def test_it_describes_every_key_and_forbids_others() -> None:
    schema = build_json_schema()
    assert schema["$schema"] == DIALECT
    blocks = [schema, *schema["$defs"].values()]
    assert all(block["additionalProperties"] is False for block in blocks)
    # The keys of tune.space are the user's own; what lies below them has no path in the schema.
    listed = [block for block in blocks if block is not schema["$defs"]["Distribution"]]
    names = {name for block in listed for name in block["properties"]}
    assert {key.name for key in all_keys().values()} == names


def test_it_is_json_with_descriptions() -> None:
    schema = json.loads(render_json_schema())
    training = schema["$defs"]["TrainingSection"]["properties"]
    assert training["save_every"]["description"]
    assert training["save_every"]["exclusiveMinimum"] == 0
