"""The teacher signals of a micro-batch as tensors, in the order of its rows that carry loss.

Shape letters: N rows that carry loss, K stored logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from raystill.losses.teachers import TopKTeacher
from raystill.train.examples import ExampleSet


def collate_teacher(examples: ExampleSet, rows: Iterable[int], device: torch.device) -> TopKTeacher | None:
    """What the store knows about the teacher at every target of `rows`; None without signals."""
    if examples.signals is None:
        return None
    places = np.concatenate([examples.signal_places(row) for row in rows])
    signals = examples.signals
    return TopKTeacher(
        ids_NK=torch.from_numpy(signals.ids_SK[places].astype(np.int64)).to(device, non_blocking=True),
        logprobs_NK=torch.from_numpy(signals.logprobs_SK[places].astype(np.float32)).to(
            device, non_blocking=True
        ),
        tail_logprob_N=torch.from_numpy(signals.tail_logprob_S[places]).to(device, non_blocking=True),
    )
