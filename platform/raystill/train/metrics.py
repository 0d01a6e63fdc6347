"""metrics.jsonl: one JSON object per logged step, and what the numbers in it mean.

`train/*` are means per token that carries loss since the previous line; `tok_s_useful` counts real tokens,
`tok_s_raw` also padding, both over all workers; `mfu` and `mfu_6nd` are shares of the measured peak
(`flops`); `time/*` are shares of the wall time since the previous line (`clock`), and
`time/seconds` is that time; `ckpt/blocked_ms` is how long saving kept training waiting in it;
`mem/peak_gb` is the first worker's most memory so far (`memory`);
`eval/*` are means over the held-out rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raystill.losses.loss import Loss
from raystill.run.publish import publish_file

_ALIGNMENT = ("hidden", "hidden_weighted")
TERM_NAMES = ("ce", "kd_kl", "ce_weighted", "kd_weighted", *_ALIGNMENT)
_SUMMED = (*TERM_NAMES, "right")
SUM_NAMES = ("loss", *_SUMMED, "tokens", "real", "raw", "squares")


class Totals:
    """Sums over micro-batches, on the device and without waiting for it, in the order of `SUM_NAMES` (S):

    the loss, its terms, targets than which no token was likelier (where they are counted), tokens that carry
    loss, real positions, computed positions, squares of row lengths.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums_S = torch.zeros(len(SUM_NAMES), dtype=torch.float64, device=device)

    def add(self, loss: Loss, num_real_tokens: int, num_raw_tokens: int, sum_squares: int = 0) -> None:
        """Add one micro-batch."""
        zero = loss.sum.new_zeros(())
        terms = [loss.sum.detach(), *(loss.metrics.get(name, zero) for name in _SUMMED)]
        self.sums_S[: len(terms)] += torch.stack(terms)
        counts = torch.tensor(
            [loss.num_tokens, num_real_tokens, num_raw_tokens, sum_squares], dtype=torch.float64
        )
        self.sums_S[len(terms) :] += counts.to(self.sums_S.device)


def named_sums(sums_S: torch.Tensor) -> dict[str, float]:
    """The sums by name."""
    return dict(zip(SUM_NAMES, sums_S.tolist(), strict=True))


def logged_terms(sums: dict[str, float], has_kd: bool) -> list[str]:
    """The loss and those of its terms that the run has."""
    if not has_kd:
        return ["loss", "ce"]
    return ["loss", *(name for name in TERM_NAMES if name not in _ALIGNMENT or sums["hidden"] > 0)]


def summarise_window(sums: dict[str, float], has_kd: bool) -> dict[str, float]:
    """Means of the steps since the last line, ready to log. Empty if nothing trained in them."""
    tokens = sums["tokens"]
    if tokens == 0:
        return {}
    values = {f"train/{name}": sums[name] / tokens for name in logged_terms(sums, has_kd)}
    return values | {"train/pad_frac": 1.0 - sums["real"] / sums["raw"]}


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
