"""metrics.jsonl: one JSON object per logged step, and what the numbers in it mean.

`train/*` are means per completion token since the previous line; `tok_s_useful` counts real tokens,
`tok_s_raw` also padding, both over all workers; `eval/*` are means over the held-out rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raystill.losses.loss import Loss
from raystill.run.publish import publish_file


class Totals:
    """Sums over micro-batches, on the device and without waiting for it: loss, CE, KD, tokens, real, raw."""

    def __init__(self, device: torch.device) -> None:
        self.sums_6 = torch.zeros(6, dtype=torch.float64, device=device)

    def add(self, loss: Loss, num_real_tokens: int, num_raw_tokens: int) -> None:
        """Add one micro-batch."""
        zero = loss.sum.new_zeros(())
        terms = [loss.sum.detach(), loss.metrics.get("ce", zero), loss.metrics.get("kd_kl", zero)]
        self.sums_6[:3] += torch.stack(terms)
        counts = torch.tensor([loss.num_tokens, num_real_tokens, num_raw_tokens], dtype=torch.float64)
        self.sums_6[3:] += counts.to(self.sums_6.device)


def summarise_window(sums_6: torch.Tensor, seconds: float, has_kd: bool) -> dict[str, float]:
    """Means and rates of the steps since the last line, ready to log. Empty if nothing trained in them."""
    loss, ce, kd, tokens, real, raw = sums_6.tolist()
    if tokens == 0:
        return {}
    values = {"train/loss": loss / tokens, "train/ce": ce / tokens}
    if has_kd:
        values["train/kd_kl"] = kd / tokens
    return values | {
        "train/tok_s_useful": real / max(seconds, 1e-9),
        "train/tok_s_raw": raw / max(seconds, 1e-9),
        "train/pad_frac": 1.0 - real / raw,
    }


def append_metrics(path: Path, step: int, values: dict[str, Any]) -> None:
    """Append one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, **values}) + "\n")


def iter_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl; a last line that a crash cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def rewind_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [record for record in iter_metrics(path) if record["step"] <= step]
    with publish_file(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
