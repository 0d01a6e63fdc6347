"""Which fault meets which request: scripted by number, or drawn with a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from raystill.errors import ConfigError

FaultKind = Literal[
    "latency",
    "429",
    "500",
    "502",
    "503",
    "504",
    "401",
    "403",
    "404",
    "reset",
    "reset_after",
    "hang",
    "half_body",
    "slow",
    "html",
    "bad_json",
    "error_200",
    "empty_choices",
    "null_content",
    "wrong_id",
    "duplicate",
    "reorder",
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
# These leave the request unanswered by the upstream: nothing is billed for it.
NOT_FORWARDED = frozenset({"429", "500", "502", "503", "504", "401", "403", "404", "reset", "hang"})


@dataclass(frozen=True)
class Fault:
    """One kind of fault. It meets the requests numbered in `at` (from 1), and others with `probability`.

    `argument`: seconds of `latency`, between the bytes of `slow`, or that `reorder` waits at most; for 429
    and 5xx the Retry-After header, as given, or `date+SECONDS` for an HTTP-date.
    """

    kind: FaultKind
    argument: str = ""
    probability: float = 0.0
    at: frozenset[int] = frozenset()


def parse_fault(text: str) -> Fault:
    """`KIND[=ARGUMENT][:PROBABILITY][@NUMBER,...]`, as in `429=1.5:0.02`, `hang@3`, `503@1,2,3`.

    Raises ConfigError for an unknown kind or a number that is none.
    """
    rest, _, numbers = text.partition("@")
    rest, _, probability = rest.partition(":")
    kind, _, argument = rest.partition("=")
    try:
        if kind not in FAULT_KINDS:
            raise ValueError(f"{kind!r} is no fault")
        fault = Fault(
            kind=kind,
            argument=argument,
            probability=float(probability or 0.0),
            at=frozenset(int(number) for number in numbers.split(",") if number),
        )
        if not 0.0 <= fault.probability <= 1.0:
            raise ValueError("a probability is between 0 and 1")
    except ValueError as error:
        raise ConfigError(
            f"not a fault: {error}",
            where=f"--fault {text}",
            fix=f"KIND[=ARGUMENT][:PROBABILITY][@NUMBER,...], KIND one of {', '.join(FAULT_KINDS)}",
        ) from error
    return fault


class FaultPlan:
    """Decides on each request in turn; equal seeds decide equally. At most one fault per request."""

    def __init__(self, faults: Sequence[Fault], seed: int = 0) -> None:
        """Raises ConfigError where the probabilities sum to more than 1."""
        if sum(fault.probability for fault in faults) > 1.0:
            raise ConfigError("the faults' probabilities sum to more than 1", where="--fault")
        self._faults = tuple(faults)
        self._seed = seed

    def of_request(self, number: int) -> Fault | None:
        """The fault of request `number` (from 1), if any; those scripted by number come first."""
        for fault in self._faults:
            if number in fault.at:
                return fault
        draw = random.Random(self._seed * 1_000_003 + number).random()
        for fault in self._faults:
            draw -= fault.probability
            if draw < 0.0:
                return fault
        return None
