"""How each request is drawn: the teacher's pipeline, what a prompt's own row says, and how many samples."""

from __future__ import annotations

import json
from dataclasses import replace

from raystill.config.schema import Config
from raystill.teacher.engine import Sampling
from raystill.teacher.preflight import require_open_teacher
from raystill.text.row_sampling import RowSampling
from raystill.text.tool_schema import ToolSchema

EVAL_SPLIT = "eval"
_EVAL_SETTINGS = ("max_new_tokens", "json_schema")


def sampling_of(config: Config, split: str, tool_schema: ToolSchema | None = None) -> Sampling:
    """How a split's completions are drawn. Held-out prompts get the teacher's best guess: greedy.

    With a tool schema, completions are forced into one call of it.
    """
    json_schema = tool_schema.text if tool_schema is not None else None
    closed = config.teacher.closed
    if closed is not None:
        asked = closed.pipeline
        drawn = Sampling(asked.temperature, asked.top_p, 0, asked.max_new_tokens, json_schema)
        return _greedy(drawn) if split == EVAL_SPLIT or asked.temperature == 0.0 else drawn
    pipeline = require_open_teacher(config).pipeline
    drawn = Sampling(
        pipeline.temperature, pipeline.top_p, pipeline.top_k, pipeline.max_new_tokens, json_schema
    )
    if split == EVAL_SPLIT or not pipeline.do_sample or pipeline.temperature == 0.0:
        return _greedy(drawn)
    return drawn


def row_sampling(base: Sampling, split: str, asked: RowSampling | None) -> Sampling:
    """`base` with what the prompt's row asks for; held-out prompts stay greedy, see `_EVAL_SETTINGS`."""
    if not asked:
        return base
    settings = {name: value for name, value in asked.items() if split != EVAL_SPLIT or name in _EVAL_SETTINGS}
    if "json_schema" in settings:
        settings["json_schema"] = json.dumps(
            settings["json_schema"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
    drawn = replace(base, **settings)
    return _greedy(drawn) if drawn.temperature == 0.0 else drawn


def num_samples_of(config: Config, split: str, sampling: Sampling) -> int:
    """Completions of one prompt: one where it is held out or drawn greedily, which gives equal ones."""
    if split == EVAL_SPLIT or sampling.temperature == 0.0:
        return 1
    return config.teacher.base.num_samples


def _greedy(sampling: Sampling) -> Sampling:
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
