"""The exception tree and the exit codes of every command.

RaystillError (1)
├── ConfigError (2)        a key, a value or a combination of them is wrong
├── DataError (3)          an input file, row, artefact or store is wrong
├── EnvironmentFault (4)   this machine can't do it: disk, memory, device, missing package, locked run
├── RemoteError (5)        something across the network failed: hub, endpoint, cluster
└── DivergenceError (6)    training became non-finite and stopped

A message says what happened, where, and how to fix it; `Problem` carries the three parts so that every
front end (terminal, --json, report) prints them the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what` happened, `where` (file:line, key, row id) and the `fix`."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class RaystillError(Exception):
    """Base of everything that raystill raises on purpose; carries one or more problems.

    Picklable on purpose (args hold every argument): it crosses Ray process boundaries.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(what, where, fix, problems)
        self.problems: tuple[Problem, ...] = problems or (Problem(what, where, fix),)
        self.what = what

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(RaystillError):
    """A configuration key, value or combination is wrong."""

    exit_code = 2


class DataError(RaystillError):
    """An input file, a row, an artefact or a store is wrong."""

    exit_code = 3


class EnvironmentFault(RaystillError):  # noqa: N818 (EnvironmentError is a builtin)
    """This machine can't do what was asked: disk, memory, device, package, lock."""

    exit_code = 4


class DiskFault(EnvironmentFault):
    """A disk is full, or about to be. What is on it is whole; with more room the same command goes on."""


class StopFault(EnvironmentFault):
    """Training was asked to stop. What it has done is saved."""


class PreemptionFault(EnvironmentFault):
    """A machine of the run is about to be taken away. What it has done is saved."""


class RemoteError(RaystillError):
    """A hub, an endpoint or a cluster failed."""

    exit_code = 5


class DivergenceError(RaystillError):
    """Training became non-finite too often and was stopped."""

    exit_code = 6
