"""The section `trackers`: under which names metrics are told."""

from __future__ import annotations

from pydantic import Field

from raystill.config.section import Section


class TrackersSection(Section):
    """`trackers`: what metrics.jsonl and the experiment trackers get besides raystill's own names."""

    trl_names: bool = Field(
        False,
        description="Also write what TRL's trainers call num_tokens (positions trained on so far, prompts "
        "included), mean_token_accuracy (targets that were the likeliest token; one more look at the logits) "
        "and, on_policy, completions/clipped_ratio (rollouts cut off before their end). Its entropy would "
        "take several passes over all logits, so it is not written.",
    )
