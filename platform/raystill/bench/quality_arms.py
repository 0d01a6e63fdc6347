"""What the quality benchmark compares: one arm per way of teaching, as overrides of a world's configuration.

All arms of a world start from the same student after a short SFT, read the same teacher store and take the
same number of optimizer steps; an arm that goes on from another shares the steps with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["demo", "text"]
ArmName = str
SFT, FORWARD, HALF, AGAIN, ON_POLICY = (
    "sft",
    "forward_kl",
    "forward_kl_half",
    "then_off_policy",
    "then_on_policy",
)
STORED = 128  # logprobs per token in the store: what KL to the teacher is measured with
WIDE, NARROW = 32, 8  # views of them that arms train on


@dataclass(frozen=True)
class Arm:
    """One way of teaching. `after` names the arm whose student it goes on from; `share` of the steps are its
    own. `signal` is what it reads of the store: a top k, draws, or nothing."""

    name: ArmName
    label: str
    overrides: tuple[str, ...]
    signal: Literal["topk", "sampled", "none"] = "topk"
    num_logprobs: int = WIDE
    after: ArmName | None = None
    share: float = 1.0

    def steps(self, total: int) -> int:
        """Optimizer steps of its own."""
        return round(total * self.share)


def _kd(divergence: str = "forward_kl", k: int = WIDE, tail: str = "bucket") -> tuple[str, ...]:
    return (f"losses.divergence={divergence}", f"losses.tail={tail}", f"losses.num_logprobs={k}")


def _online(source: str, *more: str) -> tuple[str, ...]:
    section = "train.distillation.teacher"
    return (f"{section}.source={source}", f"{section}.models=[{{name: teacher}}]", *more)


_DRAWS = ("teacher.signals.kind=sampled", "teacher.signals.capture=score")
_ROLLOUTS = (
    "losses.divergence=reverse_kl",
    "train.distillation.teacher.rollouts.sync_every=4",
    "train.distillation.teacher.rollouts.max_new_tokens=48",
)

ARMS: tuple[Arm, ...] = (
    Arm(SFT, "SFT only", ("losses.kl_weight=0", "losses.ce_weight=1"), "none"),
    Arm(FORWARD, "forward KL, k = 32", _kd()),
    Arm("reverse_kl", "reverse KL, k = 32", _kd("reverse_kl")),
    Arm("jsd", "JSD, k = 32", _kd("jsd")),
    Arm("skew_forward_kl", "skewed forward KL, k = 32", _kd("skew_forward_kl")),
    Arm("skew_reverse_kl", "skewed reverse KL, k = 32", _kd("skew_reverse_kl")),
    Arm("k1", "forward KL, k = 1", _kd(k=1), num_logprobs=1),
    Arm("k3", "forward KL, k = 3", _kd(k=3), num_logprobs=3),
    Arm("k8", "forward KL, k = 8", _kd(k=NARROW), num_logprobs=NARROW),
    Arm("dense", "forward KL, dense", _online("online"), "none"),
    Arm(
        "renormalised", "forward KL, k = 8, renormalised", _kd(k=NARROW, tail="renormalised"), "topk", NARROW
    ),
    Arm("draws", "forward KL, draws (RS-KD)", _DRAWS, "sampled"),
    Arm(HALF, "forward KL, half the steps", _kd(), share=0.5),
    Arm(AGAIN, "... the other half again off-policy", _kd(), after=HALF, share=0.5),
    Arm(
        ON_POLICY,
        "... the other half on-policy, reverse KL",
        _online("on_policy", *_ROLLOUTS),
        "none",
        after=HALF,
        share=0.5,
    ),
)
QUICK_ARMS = tuple(arm for arm in ARMS if arm.name in (SFT, FORWARD, "k1"))
BY_NAME = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class Claim:
    """Whether one arm is better than another: in exact match or KL to the teacher, or in calibration."""

    better: ArmName
    than: ArmName


CLAIMS: tuple[Claim, ...] = (
    *(Claim(arm, SFT) for arm in (FORWARD, "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl")),
    *(Claim(arm, FORWARD) for arm in ("reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl")),
    Claim("k1", SFT),
    Claim("k8", "k1"),
    Claim(FORWARD, "k8"),
    Claim("dense", FORWARD),
    Claim("k8", "renormalised"),
    Claim("k8", "draws"),
    Claim("k3", "draws"),
    Claim(AGAIN, HALF),
    Claim(ON_POLICY, AGAIN),
)
