"""What a run remembers besides weights: loss scaling, the guards' counters, the open window of metrics."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch

from raystill.checkpoint.store import open_checkpoint, save_checkpoint
from raystill.losses.balance import TermBalance
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.metrics import SUM_NAMES
from raystill.train.state import Counters


def test_loss_scaling_counters_balance_and_sums_go_on(world: Any) -> None:
    """Every field by name, so that one that is added must be saved as well."""
    run = assemble(world.job(world.config()), WorkerGroup())
    state = run.state
    state.step = 5
    # Half precision is for GPUs; its scaler counts on any device.
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    state.scaler.scale(torch.ones(()))  # its numbers come to life with the first loss
    for _ in range(2):
        state.scaler._growth_tracker += 1  # type: ignore[operator]
    values = {one.name: number for number, one in enumerate(fields(Counters), 3)}
    state.counters = Counters(**{**values, "recent_norms": [0.1, 1e-7, 3.0]})  # type: ignore[arg-type]
    sizes = {one.name: 0.1 + number for number, one in enumerate(fields(TermBalance), 1)}
    state.balance = TermBalance(**sizes)
    state.window_sums_S = torch.rand(len(SUM_NAMES), dtype=torch.float64)
    path = save_checkpoint(
        world.root / "checkpoints", 5, tensors=state.tensors(is_first=True), state=state.describe("data")
    )
    again = assemble(world.job(world.config()), WorkerGroup()).state
    again.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with open_checkpoint(path) as content:
        again.restore(content, "data")
    assert again.step == 5 and again.scaler.state_dict() == state.scaler.state_dict()
    assert again.scaler.get_scale() == 1024.0 and again.scaler.state_dict()["_growth_tracker"] == 2
    assert asdict(again.counters) == asdict(state.counters) and again.counters.recent_norms[1] == 1e-7
    assert asdict(again.balance) == asdict(state.balance) == sizes
    assert torch.equal(again.window_sums_S, state.window_sums_S)
