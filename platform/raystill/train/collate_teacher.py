"""The teacher signals of a micro-batch as tensors, in the order of its rows that carry loss.

Shape letters: N rows that carry loss, K stored logprobs, U distinct draws, D the teacher's hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raystill.losses.teachers import DenseTeacher, SampledTeacher, Teacher, TopKTeacher
from raystill.train.examples import ExampleSet
from raystill.train.signal_arrays import DrawArrays, StateArrays, gather_draws


def collate_teacher(examples: ExampleSet, rows: Iterable[int], device: torch.device) -> Teacher | None:
    """What the store knows about the teacher at every target of `rows`; None without signals."""
    signals = examples.signals
    if signals is None:
        return None
    places = np.concatenate([examples.signal_places(row) for row in rows])

    def tensor(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    if isinstance(signals, DrawArrays):
        ids_NU, shares_NU = gather_draws(signals, places)
        return SampledTeacher(tensor(ids_NU), tensor(shares_NU))
    if isinstance(signals, StateArrays):
        head = examples.teacher_head
        assert head is not None, "stored hidden states need their teacher's head"
        return DenseTeacher(
            tensor(signals.hidden_SD[places]), head.weight_VD, head.bias_V, head.softcap, head.scale
        )
    return TopKTeacher(
        ids_NK=tensor(signals.ids_SK[places].astype(np.int64)),
        logprobs_NK=tensor(signals.logprobs_SK[places].astype(np.float32)),
        tail_logprob_N=tensor(np.asarray(signals.tail_logprob_S[places])),
    )
