"""Which terms a training loss has, and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raystill.errors import ConfigError

Divergence = Literal["forward_kl", "reverse_kl"]


@dataclass(frozen=True)
class LossTerms:
    """loss = ce_weight * CE + kl_weight * kd_temperature^2 * divergence(teacher, student), per token.

    forward_kl is KL(teacher || student), reverse_kl is KL(student || teacher), both of the distributions
    tempered by `kd_temperature`. Raises ConfigError for weights or a temperature that train nothing.
    """

    ce_weight: float = 1.0
    kl_weight: float = 0.0
    divergence: Divergence = "forward_kl"
    kd_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.ce_weight < 0 or self.kl_weight < 0 or self.ce_weight + self.kl_weight == 0:
            raise ConfigError(
                f"loss weights ce={self.ce_weight} and kl={self.kl_weight} train nothing",
                where="losses.ce_weight, losses.kl_weight",
                fix="give at least one of them a value above 0, and none below",
            )
        if self.kd_temperature <= 0:
            raise ConfigError(
                f"a KD temperature of {self.kd_temperature} has no distribution",
                where="losses.kd_temperature",
                fix="use a value above 0, for example 1.0",
            )
