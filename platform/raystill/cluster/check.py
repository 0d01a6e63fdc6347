"""`raystill check`: everything that can be known to be wrong before anything is started or paid for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raystill.cluster.check_data import (
    TokenView,
    check_data,
    check_lengths,
    check_student,
    check_teacher,
    view_example,
)
from raystill.cluster.check_endpoint import check_judge, check_teacher_endpoint
from raystill.cluster.check_environment import check_environment
from raystill.cluster.check_identity import AREA, check_identity
from raystill.cluster.findings import Finding, Findings
from raystill.cluster.plan import Plan
from raystill.config.schema import Config
from raystill.errors import ConfigError


@dataclass(frozen=True)
class CheckResult:
    """All findings, and one training example token by token where it could be rendered."""

    findings: list[Finding]
    example: TokenView | None
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; the shape that --json prints."""
        return {
            "exit_code": self.exit_code,
            "findings": [finding.to_json() for finding in self.findings],
            "example": None if self.example is None else self.example.to_json(),
        }


def run_check(config: Config, plan: Plan, *, asks_endpoints: bool = False) -> CheckResult:
    """Check machine, cluster, data and models for `config`; `plan` says what the run would need.

    Joins the cluster where one is configured, and leaves it again. Asks no teacher and writes nothing, unless
    with `asks_endpoints`: a few billed requests, which count in the budget of a store that there is.
    """
    findings = Findings()
    for problem in plan.blockers:
        findings.fail("config", ConfigError(problem.what, problem.where, problem.fix))
    for warning in plan.warnings:
        findings.warn("config", warning.what, warning.where, warning.fix)
    check_environment(config, plan, findings)
    prompts = check_data(config, findings)
    teacher = student = example = None
    if config.teacher.closed is not None:
        with findings.catching("endpoint"):
            teacher = check_teacher_endpoint(config, findings, asks=asks_endpoints)
    else:
        with findings.catching("templates"):
            teacher = check_teacher(config, findings)
    with findings.catching("judge"):
        check_judge(config, findings, asks=asks_endpoints)
    with findings.catching("templates"):
        student = check_student(config, teacher, findings)
    with findings.catching("data"):
        if teacher is not None:
            check_lengths(config, prompts, teacher, findings)
    with findings.catching("templates"):
        chat = student or teacher
        if chat is not None and prompts:
            example = view_example(chat, prompts[0])
    with findings.catching(AREA):
        check_identity(config, prompts, findings)
    return CheckResult(findings.all, example, findings.exit_code)
