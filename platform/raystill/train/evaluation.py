"""The loss on held-out rows."""

from __future__ import annotations

import torch

from raystill.train.batches import collate, plan_evaluation
from raystill.train.device import autocast
from raystill.train.examples import ExampleSet
from raystill.train.group import WorkerGroup
from raystill.train.metrics import Totals, logged_terms, named_sums
from raystill.train.objective import Objective
from raystill.train.settings import TrainSettings
from raystill.train.sharding import keep_in_step, reshard
from raystill.train.student import Student


def evaluate_loss(
    student: Student,
    held_out: ExampleSet,
    objective: Objective,
    settings: TrainSettings,
    group: WorkerGroup,
) -> dict[str, float]:
    """`eval/loss`, `eval/ce` and, with a KD term, `eval/kd_kl`: means per token. Empty without rows."""
    if len(held_out) == 0:
        return {}
    totals = Totals(student.device)
    student.network.eval()
    with torch.no_grad():
        batches = plan_evaluation(held_out, settings, group.rank, group.size)
        keep_in_step(student, len(batches), group)
        for rows in batches:
            batch = collate(held_out, rows, student.pad_id, student.device, packed=settings.packed)
            objective.expect(batch)
            with autocast(student.device, settings.precision):
                hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
                loss = objective(hidden_ND, student.head(), batch)
            totals.add(loss, batch.num_real_tokens, batch.num_raw_tokens)
    reshard(student.network)
    student.network.train()
    sums = named_sums(group.sum_(totals.sums_S))
    names = logged_terms(sums, settings.terms.uses_teacher)
    return {f"eval/{name}": sums[name] / sums["tokens"] for name in names}
