"""Who a closed teacher is: its endpoint, its name there, its tokenizer where known, and what a row asks."""

from __future__ import annotations

import json
from dataclasses import dataclass

from raystill.config.closed_teacher import ClosedTeacher
from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.store.identity import StoreIdentity
from raystill.teacher.api.address import Address, parse_address, read_key
from raystill.teacher.plan_requests import Question
from raystill.teacher.sampling import row_sampling, sampling_of
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.prompt_row import Prompt
from raystill.text.tokenizer import chat_template_sha256, tokenizer_sha256
from raystill.text.tool_schema import ToolSchema, load_tool_schema

ENGINE_NAME = "openai"
# What the endpoint computes in is its own business.
_DTYPE = "endpoint"
_MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class KnownEndpoint:
    """A closed teacher that has passed the preflight. `chat` is the served model's, where it is known."""

    config: Config
    closed: ClosedTeacher
    address: Address
    chat: ChatFormat | None
    identity: StoreIdentity
    tool_schema: ToolSchema | None

    @property
    def where(self) -> str:
        """How errors name the endpoint."""
        return f"{self.closed.model.name} at {self.address.base_url}"

    @property
    def wanted_logprobs(self) -> int:
        """Logprobs to ask for: none where nothing could tell which tokens they belong to."""
        return wanted_logprobs(self.config, self.closed)

    def ask(self, prompt: Prompt) -> Question:
        """What one prompt asks. Its key names the messages, not a rendering: the endpoint renders them."""
        base = sampling_of(self.config, prompt.split, self.tool_schema)
        sampling = row_sampling(base, prompt.split, prompt.sampling)
        chat = self.chat
        return Question(
            sampling,
            rendered=json.dumps(prompt.messages, sort_keys=True, ensure_ascii=False),
            facts={**vars(sampling), "reasoning": self.config.teacher.base.reasoning},
            prompt_token_ids=[]
            if chat is None
            else chat.render_prompt_ids(prompt.messages, add_generation_prompt=True),
        )


def identify_endpoint(config: Config) -> KnownEndpoint:
    """Check the closed teacher and say who it is; sends nothing.

    Raises ConfigError for a wrong address, a missing key or settings that no endpoint takes, and what
    `load_chat_format` and `load_tool_schema` raise.
    """
    closed = require_closed_teacher(config)
    address = parse_address(closed.endpoint)
    read_key(closed.endpoint)
    _check_settings(config, closed)
    tools = config.teacher.base.tool_schema
    tool_schema = load_tool_schema(tools) if tools is not None else None
    chat = load_chat_format(closed.model.tokenizer) if closed.model.tokenizer is not None else None
    identity = StoreIdentity(
        teacher=f"{closed.model.name} @ {address.identity}",
        engine=ENGINE_NAME,
        dtype=_DTYPE,
        tokenizer_sha256=tokenizer_sha256(chat.tokenizer) if chat is not None else "",
        chat_template_sha256=(chat_template_sha256(chat.tokenizer) or "") if chat is not None else "",
        num_logprobs=config.teacher.signals.num_logprobs,
    )
    return KnownEndpoint(config, closed, address, chat, identity, tool_schema)


def require_closed_teacher(config: Config) -> ClosedTeacher:
    """`teacher.closed`. Raises ConfigError where there is none."""
    if config.teacher.closed is None:
        raise ConfigError("there is no closed teacher", "teacher.closed", "set teacher.closed.model.name")
    return config.teacher.closed


def wanted_logprobs(config: Config, closed: ClosedTeacher) -> int:
    """How many logprobs per token the endpoint is asked for."""
    signals = config.teacher.signals
    if signals.capture == "score" or closed.model.tokenizer is None:
        return 0
    return signals.num_logprobs


def _check_settings(config: Config, closed: ClosedTeacher) -> None:
    signals = config.teacher.signals
    if signals.capture == "generation" and signals.num_logprobs and closed.model.tokenizer is None:
        raise ConfigError(
            "an endpoint's logprobs can't be stored without its tokenizer: they are indexed by token id",
            "teacher.closed.model.tokenizer",
            "set it to a directory with the served model's tokenizer, or teacher.signals.capture: auto",
        )
    if closed.pipeline.temperature > _MAX_TEMPERATURE:
        raise ConfigError(
            f"endpoints take temperatures up to {_MAX_TEMPERATURE:g}",
            "teacher.closed.pipeline.temperature",
            f"set it to at most {_MAX_TEMPERATURE:g}",
        )
