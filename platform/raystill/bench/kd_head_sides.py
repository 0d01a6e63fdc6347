"""The sides of the KD head benchmark, and their measurements in a process of its own."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from raystill.bench.own_process import forget_peak_memory, peak_memory_mb
from raystill.errors import EnvironmentFault

OURS, DENSE = "stored top 64", "dense teacher"
TRL, LIGER = "trl 1.16 chunked", "liger 0.8.5 chunked"
SIDES = (OURS, DENSE, TRL, LIGER)
# Far above rounding, far below another divergence.
_SAME_FUNCTION = 1e-2
_NUM_LOGPROBS = 64
# Few rows, so that logits in float64 fit anywhere.
_CHECKED_ROWS = 16
_SMALL_VOCAB = 512


@dataclass(frozen=True)
class Case:
    """N rows, of which every other one carries loss, at hidden size D and vocabulary V."""

    num_rows: int
    hidden_size: int
    vocab_size: int

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"H={self.hidden_size} V={self.vocab_size}"

    @property
    def text(self) -> str:
        """As it crosses process boundaries."""
        return json.dumps([self.num_rows, self.hidden_size, self.vocab_size])


@dataclass(frozen=True)
class Problem:
    """What all sides are given. Every tensor float32; `kept_M` the rows that carry loss."""

    hidden_ND: Any
    head_VD: Any
    taught_ND: Any
    teacher_head_VD: Any
    target_ids_N: Any
    kept_M: Any


def require_peers() -> None:
    """Raise EnvironmentFault, naming the peer, where one isn't installed."""
    for name, how in (("trl", "pip install 'raystill[bench]'"), ("liger_kernel", "pip install --no-deps")):
        if find_spec(name) is None:
            raise EnvironmentFault(f"the benchmark's peer, {name}, is not installed", fix=how)


def make_problem(case: Case) -> Problem:
    """A student and a teacher of the same width that disagree."""
    import torch

    generator = torch.Generator().manual_seed(0)
    N, D, V = case.num_rows, case.hidden_size, case.vocab_size
    return Problem(
        hidden_ND=torch.randn(N, D, generator=generator).requires_grad_(),
        head_VD=torch.randn(V, D, generator=generator).div_(D**0.5).requires_grad_(),
        taught_ND=torch.randn(N, D, generator=generator),
        teacher_head_VD=torch.randn(V, D, generator=generator).mul_(3 / D**0.5),
        target_ids_N=torch.randint(V, (N,), generator=generator),
        kept_M=torch.arange(1, N, 2),
    )


def make_losses(problem: Problem, *, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Every side as a function that returns its loss: forward KL, summed over the rows that carry loss.
    `compiled` is about Liger, which compiles itself by default."""
    from raystill.losses.chunked import chunked_loss
    from raystill.losses.teachers import DenseTeacher, Teacher
    from raystill.losses.terms import LossTerms

    kept, terms = problem.kept_M, LossTerms(ce_weight=0.0, kl_weight=1.0)
    topk = store_topk(problem)
    dense = DenseTeacher(problem.taught_ND[kept], problem.teacher_head_VD)

    def ours(teacher: Teacher) -> Any:
        hidden, targets = problem.hidden_ND[kept], problem.target_ids_N[kept]
        return chunked_loss(hidden, problem.head_VD, targets, terms, teacher=teacher).sum

    return {
        OURS: lambda: ours(topk),
        DENSE: lambda: ours(dense),
        TRL: lambda: _trl(problem),
        LIGER: lambda: _liger(problem, compiled),
    }


def store_topk(problem: Problem) -> Any:
    """The teacher's best tokens and tail at the rows that carry loss, as a store holds them."""
    import torch

    from raystill.losses.teachers import TopKTeacher

    ids, logprobs, tails = [], [], []
    for rows in problem.kept_M.split(8):
        logprobs_RV = torch.log_softmax(problem.taught_ND[rows] @ problem.teacher_head_VD.T, -1)
        top = logprobs_RV.topk(_NUM_LOGPROBS, dim=-1)
        ids.append(top.indices)
        logprobs.append(top.values)
        tails.append(logprobs_RV.scatter_(1, top.indices, -torch.inf).logsumexp(-1))
    return TopKTeacher(torch.cat(ids), torch.cat(logprobs), torch.cat(tails))


def _trl(problem: Problem) -> Any:
    """All rows through the tiles, then the mask: on CPU its trainer does so too."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence_N, _ = ChunkedDivergenceFunction.apply(
        problem.hidden_ND, problem.head_VD, None, problem.taught_ND, problem.teacher_head_VD, None, 0.0
    )
    return divergence_N[problem.kept_M].sum()


def _liger(problem: Problem, compiled: bool) -> Any:
    """Masked by its ignore index."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    targets = torch.full_like(problem.target_ids_N, -100)
    targets[problem.kept_M] = problem.target_ids_N[problem.kept_M]
    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, compiled=compiled)
    mean = loss(problem.hidden_ND, problem.head_VD, problem.taught_ND, problem.teacher_head_VD, targets)
    return mean * len(problem.kept_M)


def gradients(problem: Problem, loss: Any) -> tuple[Any, Any]:
    """In the hidden states (N, D) and the head (V, D)."""
    import torch

    hidden, head = torch.autograd.grad(loss, (problem.hidden_ND, problem.head_VD))
    return hidden, head


def measure_errors(case: Case, sides: Sequence[str] = SIDES) -> dict[str, float]:
    """Relative error of each side's gradients against float64, on a few rows: the larger of the two.

    Raises EnvironmentFault for a side that computes something else.
    """
    import torch

    problem = make_problem(Case(_CHECKED_ROWS, case.hidden_size, case.vocab_size))
    exact = {side: _exact_gradients(problem, sparse=side == OURS) for side in (OURS, DENSE)}
    errors = {}
    losses = make_losses(problem, compiled=False)
    for side in sides:
        pairs = zip(gradients(problem, losses[side]()), exact[OURS if side == OURS else DENSE], strict=True)
        found = [torch.linalg.norm(a.double() - b) / torch.linalg.norm(b) for a, b in pairs]
        errors[side] = float(max(found))
        if not errors[side] < _SAME_FUNCTION:
            raise EnvironmentFault(f"{side} doesn't compute forward KL: {errors[side]:.1g} off")
    return errors


def _exact_gradients(problem: Problem, *, sparse: bool) -> tuple[Any, Any]:
    """By the definition, in float64, with whole logits."""
    import torch

    hidden, head = (x.detach().double().requires_grad_() for x in (problem.hidden_ND, problem.head_VD))
    log_s = torch.log_softmax(hidden[problem.kept_M] @ head.T, -1)
    if sparse:
        topk = store_topk(problem)
        others = log_s.scatter(1, topk.ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
        log_s = torch.cat([log_s.gather(1, topk.ids_NK), others], dim=-1)
        log_t = torch.log_softmax(topk.coarse_logprobs(torch.float64), -1)
    else:
        taught = problem.taught_ND[problem.kept_M].double() @ problem.teacher_head_VD.double().T
        log_t = torch.log_softmax(taught, -1)
    loss = (log_t.exp() * (log_t - log_s)).sum()
    first, second = torch.autograd.grad(loss, (hidden, head))
    return first, second


def measure_times(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of loss and gradients, every side in turn, after a round that doesn't count. Liger is compiled
    where there is a C++ compiler for it."""
    problem = make_problem(case)
    losses = make_losses(problem, compiled=which("g++") is not None)
    seconds: dict[str, list[float]] = {side: [] for side in losses}
    for number in range(rounds + 1):
        for side, loss in losses.items():
            gc.collect()
            started = time.perf_counter()
            gradients(problem, loss())
            if number:
                seconds[side].append(time.perf_counter() - started)
    return seconds


def measure_growth(case: Case, side: str) -> float:
    """How far one call of a side raises this process's resident memory, in MB (10^6 bytes).

    After a call on a few rows, so that libraries are loaded and threads have started. What making the problem
    took for a moment doesn't count, nor is it there to be taken again.
    """
    few = make_problem(Case(_CHECKED_ROWS, case.hidden_size, _SMALL_VOCAB))
    gradients(few, make_losses(few, compiled=False)[side]())
    problem = make_problem(case)
    losses = make_losses(problem, compiled=False)
    gc.collect()
    forget_peak_memory()
    before = _resident_mb()
    gradients(problem, losses[side]())
    return peak_memory_mb() - before


def bound_mb(case: Case, side: str) -> float:
    """What a chunked loss must hold beside its inputs, in MB: a chunk's logits (of a dense teacher too), the
    rows that it was given (selected here), and the gradients."""
    from raystill.losses.chunked import choose_chunk_rows

    N, D, V = case.num_rows, case.hidden_size, case.vocab_size
    kept = N // 2
    chunk = min(choose_chunk_rows(V, "cpu"), kept) * V
    rows = (2 if side == DENSE else 1) * kept * D
    return 4e-6 * ((2 if side == DENSE else 1) * chunk + rows + (kept + N + V) * D)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """`time CASE ROUNDS` or `memory CASE SIDE`: prints one JSON object."""
    what, text, last = sys.argv[1:4]
    case = Case(*json.loads(text))
    if what == "memory":
        found: dict[str, Any] = {"growth_mb": measure_growth(case, last)}
    else:
        found = {"errors": measure_errors(case), "seconds": measure_times(case, int(last))}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
