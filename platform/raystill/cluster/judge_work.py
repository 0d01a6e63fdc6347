"""What a judge will be asked, and what that needs: one question per training answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raystill.cluster.endpoint_cost import EndpointWork, compute_cost_usd, compute_least_seconds
from raystill.cluster.model_size import count_local_parameters
from raystill.cluster.stored_answers import BYTES_PER_TOKEN
from raystill.cluster.workload import Workload
from raystill.config.grade import GradeSection
from raystill.config.schema import Config


@dataclass(frozen=True)
class JudgeWork:
    """Questions and tokens of the stage grade; None where nothing says.

    `cost_usd` and `least_seconds` are those of a judge behind an API, `parameters` those of an open one.
    """

    questions: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    least_seconds: float | None
    parameters: int | None

    @property
    def asked(self) -> EndpointWork:
        """The same as what an endpoint is asked."""
        return EndpointWork(self.questions, self.prompt_tokens, self.completion_tokens)

    @property
    def tokens(self) -> int | None:
        """Tokens that the judge reads or writes."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens

    @property
    def operations(self) -> float | None:
        """Floating-point operations of an open judge: two per parameter and token."""
        if self.parameters is None or self.tokens is None:
            return None
        return 2.0 * self.parameters * self.tokens

    def describe(self) -> str:
        """`2,600 answers, ~780,000 tokens to read, ~83,200 to write`."""
        if self.questions is None:
            return "answers counted after prepare"
        text = f"{self.questions:,} answers"
        if self.prompt_tokens is None or self.completion_tokens is None:
            return text
        return f"{text}, ~{self.prompt_tokens:,} tokens to read, ~{self.completion_tokens:,} to write"


def estimate_judge_work(config: Config, workload: Workload) -> JudgeWork | None:
    """The work of `grade`; None where there is no judge. Equal answers are asked about once, which only the
    stage itself can see, so this is the most that it asks."""
    grade = config.grade
    if grade is None:
        return None
    questions = None if workload.requests is None else workload.requests - (workload.eval_rows or 0)
    prompt_tokens = completion_tokens = None
    judge = grade.closed or grade.open
    if questions is not None and judge is not None:
        completion_tokens = questions * judge.pipeline.max_new_tokens // 2
        row_tokens = _row_tokens(workload)
        if row_tokens is not None:
            prompt_tokens = round(questions * (_template_tokens(grade) + row_tokens))
    asked = EndpointWork(questions, prompt_tokens, completion_tokens)
    closed, opened = grade.closed, grade.open
    return JudgeWork(
        questions,
        prompt_tokens,
        completion_tokens,
        cost_usd=None if closed is None else compute_cost_usd(closed, asked),
        least_seconds=None if closed is None else compute_least_seconds(closed, asked),
        parameters=None if opened is None else count_local_parameters(Path(opened.model.name).expanduser()),
    )


def _row_tokens(workload: Workload) -> float | None:
    """Tokens of one conversation and its answer."""
    if not workload.rows or not workload.requests:
        return None
    if workload.prompt_tokens is None or workload.completion_tokens is None:
        return None
    return workload.prompt_tokens / workload.rows + workload.completion_tokens / workload.requests


def _template_tokens(grade: GradeSection) -> float:
    text = grade.template + grade.rubric + (grade.system or "")
    return len(text.encode("utf-8")) / BYTES_PER_TOKEN
