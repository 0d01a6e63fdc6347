"""`teacher.closed`: a teacher behind an OpenAI-compatible API, what it may be asked, and what it may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystill.config.general import Count, PathText
from raystill.config.section import Section
from raystill.config.teacher_fields import DataSection, Temperature, TopP

PositiveSeconds = Annotated[float, Field(gt=0.0)]
UsdPerMillion = Annotated[float, Field(ge=0.0)]


class ClosedModel(Section):
    """`teacher.closed.model`."""

    name: str = Field(min_length=1, description="Model name of the endpoint.")
    tokenizer: PathText | None = Field(
        None,
        description="Local tokenizer of the served model, where it is known: stores token ids, and maps the "
        "endpoint's logprobs to them.",
    )


class ClosedPipeline(Section):
    """`teacher.closed.pipeline`: sampling, and how many requests are in flight."""

    max_new_tokens: Count = Field(512, description="Longest completion in tokens.")
    temperature: Temperature = Field(0.7, description="Sampling temperature.")
    top_p: TopP = Field(0.9, description="Nucleus sampling.")
    batch_size: Count = Field(2, description="Most requests in flight; fewer while the endpoint is busy.")
    resume: bool = Field(True, description="false starts a new store and keeps the old one aside.")


class ClosedEndpoint(Section):
    """`teacher.closed.endpoint`: where the API is, and how long to wait for it."""

    base_url: str = Field(
        "https://api.openai.com/v1", min_length=1, description="Address of the API, ending before /chat."
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        title="the name of an environment variable",
        description="Environment variable that holds the key, on every node; null sends no key.",
    )
    allow_http: bool = Field(False, description="Send the key over plain http to another machine.")
    request_timeout_s: PositiveSeconds = Field(120.0, description="Deadline of one request in seconds.")
    max_attempts: Count = Field(6, description="Requests that a row may cost before it is rejected.")
    mode: Literal["online", "batch"] = Field(
        "online", description="online: one request per row. batch: the provider's Batch API, cheaper, slow."
    )


class ClosedLimits(Section):
    """`teacher.closed.limits`: rates that all workers of a run share."""

    requests_per_minute: Count | None = Field(None, description="Unset: only the endpoint's own 429s limit.")
    tokens_per_minute: Count | None = Field(None, description="Prompt and completion tokens together.")
    num_clients: Count = Field(1, description="Worker processes that send requests.")


class ClosedPrices(Section):
    """`teacher.closed.prices`: USD per million tokens."""

    prompt: UsdPerMillion = Field(0.0, description="USD per million prompt tokens.")
    cached_prompt: UsdPerMillion | None = Field(
        None, description="USD per million cached prompt tokens; unset: as prompt."
    )
    completion: UsdPerMillion = Field(0.0, description="USD per million completion and reasoning tokens.")
    batch_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="Price of the Batch API relative to the online one."
    )


class ClosedBudget(Section):
    """`teacher.closed.budget`: when to stop spending."""

    max_cost_usd: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Hard cap over the store's life; no request is sent that could exceed it."
    )
    ask_above_usd: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="Without a cap, a run whose estimate is above this is refused."
    )


class ClosedTeacher(Section):
    """`teacher.closed`: a teacher behind an API."""

    model: ClosedModel
    pipeline: ClosedPipeline = Field(default_factory=ClosedPipeline)
    endpoint: ClosedEndpoint = Field(default_factory=ClosedEndpoint)
    limits: ClosedLimits = Field(default_factory=ClosedLimits)
    prices: ClosedPrices = Field(default_factory=ClosedPrices)
    budget: ClosedBudget = Field(default_factory=ClosedBudget)
    data: DataSection = Field(default_factory=DataSection)
