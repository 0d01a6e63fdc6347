"""The run that benchmarks of training begin with: the demo's prompts, answered by the fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_DEMO = Path(__file__).parents[1] / "demo"


def taught_run(directory: Path, name: str, num_prompts: int, eval_size: int) -> dict[str, Any]:
    """Sections of a configuration for a run `name` below `directory`, ready for those of a student."""
    return {
        "run": {"name": name, "dir": str(directory / "runs")},
        "device": {"type": "cpu"},
        "prompts": {
            "sources": [{"path": str(_DEMO / "data" / "prompts.jsonl"), "limit": num_prompts}],
            "eval_size": eval_size,
        },
        "teacher": {
            "engine": "fake",
            "open": {
                "model": {"name": str(_DEMO / "teacher"), "bfloat16": False},
                "pipeline": {"max_new_tokens": 40},
            },
            "signals": {"num_logprobs": 20, "capture": "generation"},
        },
    }
