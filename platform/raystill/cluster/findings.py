"""What a check found: good, worth knowing, or in the way; the last with its repair and its exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raystill.errors import ConfigError, DataError, EnvironmentFault, RaystillError

Level = Literal["ok", "warning", "error"]
# The order in which an exit code is chosen where several kinds were found.
_FIRST = (EnvironmentFault.exit_code, DataError.exit_code, ConfigError.exit_code)


@dataclass(frozen=True)
class Finding:
    """One result. `area` groups them; `exit_code` is 0 unless it is an error."""

    area: str
    level: Level
    what: str
    where: str = ""
    fix: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


class Findings:
    """Collects findings in order; an error of ours becomes one instead of ending the check."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def good(self, area: str, what: str) -> None:
        """Something is as it should be."""
        self.all.append(Finding(area, "ok", what))

    def warn(self, area: str, what: str, where: str = "", fix: str = "") -> None:
        """Something works, and is worth knowing."""
        self.all.append(Finding(area, "warning", what, where, fix))

    def fail(self, area: str, error: RaystillError) -> None:
        """Something is in the way: every problem of `error`."""
        for problem in error.problems:
            self.all.append(Finding(area, "error", problem.what, problem.where, problem.fix, error.exit_code))

    @contextmanager
    def catching(self, area: str) -> Iterator[None]:
        """What the body raises on purpose is a finding of `area`."""
        try:
            yield
        except RaystillError as error:
            self.fail(area, error)

    def run(self, area: str, checks: Sequence[Callable[[], None]]) -> None:
        """Run checks, each on its own."""
        for check in checks:
            with self.catching(area):
                check()

    @property
    def exit_code(self) -> int:
        """0, or the code of what stands in the way: environment before data before configuration."""
        codes = {finding.exit_code for finding in self.all if finding.level == "error"}
        return next((code for code in _FIRST if code in codes), max(codes, default=0))
