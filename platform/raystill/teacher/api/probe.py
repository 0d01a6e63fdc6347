"""What the endpoint can do, found out by a few tiny requests and kept beside the stage's output.

Every run sends the first of them, so a wrong key, address or model stops it after one request. What the
endpoint can't do is said with its consequence; nothing is silently left out.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raystill.errors import RemoteError
from raystill.run.publish import write_json
from raystill.teacher.api.client import Answered
from raystill.teacher.api.outcomes import Failure, abort_error
from raystill.teacher.api.wire import BodyShape, LimitName, build_body, encode
from raystill.teacher.engine import GenerationRequest

CACHE_NAME = "endpoint.json"
PROBE_KEY = "0" * 32
PROBE_TEXT = "Reply with the single word: yes"
_VERSION = 1
_FEW_TOKENS = 16
# What endpoints cap top_logprobs at, most first.
_LOGPROB_STEPS = (20, 8, 5, 1)
# Plain under two names of the limit, seed, n, JSON Schema, and logprobs: six counts, each in two forms.
MAX_PROBE_REQUESTS = 17
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}

Send = Callable[[bytes], Awaitable[Answered | Failure]]


@dataclass(frozen=True)
class Capabilities:
    """What one endpoint does for one model.

    `max_logprobs`: the largest top_logprobs that it gave, up to what was asked; `has_token_ids`: logprobs
    come with token ids (vLLM); `has_unique_ids`: no two answers share an id.
    """

    limit_name: LimitName
    max_logprobs: int
    has_token_ids: bool
    has_seed: bool
    has_choices: bool
    has_json_schema: bool
    has_unique_ids: bool
    asked_logprobs: int

    def shape(self, model: str) -> BodyShape:
        """The bodies to send."""
        return BodyShape(model, self.limit_name, self.has_seed, self.max_logprobs, self.has_token_ids)


async def probe_endpoint(send: Send, request: GenerationRequest, model: str, where: str) -> Capabilities:
    """Find out what the endpoint does. `request` has the run's own sampling, and the logprobs it wants.

    Raises RemoteError where even the plainest request is refused.
    """
    shape, first = await _probe_plain(send, request, model, where)
    plain = _plain_body(shape, request)
    answers = [first]
    capped = {**plain, shape.limit_name: min(_FEW_TOKENS, request.sampling.max_new_tokens)}

    async def takes(**fields: Any) -> Answered | None:
        outcome = await send(encode({**capped, **fields}))
        if isinstance(outcome, Failure):
            _require_reject(outcome, where)
            return None
        answers.append(outcome)
        return outcome

    has_seed = await takes(seed=7) is not None
    choices = await takes(n=2)
    schema = {"name": "answer", "strict": True, "schema": _SCHEMA}
    formatted = await takes(response_format={"type": "json_schema", "json_schema": schema})
    max_logprobs, has_ids = await _probe_logprobs(takes, request.num_logprobs)
    ids = [answer.answer.id for answer in answers]
    return Capabilities(
        limit_name=shape.limit_name,
        max_logprobs=max_logprobs,
        has_token_ids=has_ids,
        has_seed=has_seed,
        has_choices=choices is not None and len(choices.answer.choices or []) == 2,
        has_json_schema=formatted is not None and _fits(formatted),
        has_unique_ids=all(ids) and len(set(ids)) == len(ids),
        asked_logprobs=request.num_logprobs,
    )


async def confirm_endpoint(
    send: Send, request: GenerationRequest, model: str, known: Capabilities, where: str
) -> None:
    """One request, so that a key or a model that has gone stops the run at once. Raises RemoteError."""
    shape = replace(known.shape(model), num_logprobs=0)
    body = {**_plain_body(shape, request), shape.limit_name: 1}
    outcome = await send(encode(body))
    if isinstance(outcome, Failure):
        raise _unusable(outcome, where)


def load_capabilities(path: Path, address: str, model: str, num_logprobs: int) -> Capabilities | None:
    """What an earlier run of this stage found out about the same endpoint, or None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if [record["version"], record["endpoint"], record["model"]] != [_VERSION, address, model]:
            return None
        known = Capabilities(**record["capabilities"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known.asked_logprobs == num_logprobs else None


def save_capabilities(path: Path, address: str, model: str, known: Capabilities) -> None:
    """Keep what the probe found out."""
    record = {"version": _VERSION, "endpoint": address, "model": model, "capabilities": asdict(known)}
    write_json(path, record)


def capability_notes(known: Capabilities, *, wanted_logprobs: int, has_scorer: bool) -> list[str]:
    """What the endpoint can't do, and what follows, in words for the user."""
    notes = []
    if wanted_logprobs and known.max_logprobs == 0:
        rest = (
            "teacher.open will score the answers"
            if has_scorer
            else "the store holds text alone, so train.sft and losses.kl_weight: 0 are possible, and KD "
            "losses (losses.kl_weight above 0) are not; give a teacher.open that scores, or an endpoint "
            "with logprobs"
        )
        notes.append(f"the endpoint returns no logprobs: {rest}")
    elif known.max_logprobs < wanted_logprobs:
        notes.append(
            f"the endpoint returns at most {known.max_logprobs} logprobs per token, and "
            f"teacher.signals.num_logprobs is {wanted_logprobs}: {known.max_logprobs} are stored, the rest "
            "of the mass is in the tail; a vLLM server gives more with --max-logprobs"
        )
    if not known.has_seed:
        notes.append("the endpoint takes no seed: other runs of the same requests give other answers")
    return notes


async def _probe_plain(
    send: Send, request: GenerationRequest, model: str, where: str
) -> tuple[BodyShape, Answered]:
    """The plainest body with the run's sampling, under either name of the length limit."""
    failure: Failure | None = None
    for name in ("max_tokens", "max_completion_tokens"):
        shape = BodyShape(model, name, sends_seed=False)
        outcome = await send(encode(_plain_body(shape, request)))
        if isinstance(outcome, Answered):
            return shape, outcome
        failure = failure or outcome
        if outcome.action != "reject" or "max_completion_tokens" not in outcome.message:
            break
    assert failure is not None
    raise _unusable(failure, where)


async def _probe_logprobs(takes: Callable[..., Awaitable[Answered | None]], wanted: int) -> tuple[int, bool]:
    """The largest top_logprobs that comes back, and whether it comes with token ids."""
    if not wanted:
        return 0, False
    vllm_fields = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    # One more than is stored: a server may put the sampled token in the place of the last of the best.
    for count in dict.fromkeys((wanted + 1, wanted, *(step for step in _LOGPROB_STEPS if step < wanted))):
        for extra in (vllm_fields, {}):
            answer = await takes(logprobs=True, top_logprobs=count, **extra)
            if answer is None:
                continue
            found = _num_logprobs(answer)
            if found == 0:
                return 0, False  # ignored rather than refused: a smaller number won't help
            with_ids = bool(extra) and _has_ids(answer)
            return min(found, count), with_ids
    return 0, False


def _plain_body(shape: BodyShape, request: GenerationRequest) -> dict[str, Any]:
    plain = replace(
        request,
        messages=json.dumps([{"role": "user", "content": PROBE_TEXT}]),
        sampling=replace(request.sampling, json_schema=None),
    )
    body: dict[str, Any] = json.loads(build_body(replace(shape, sends_seed=False, num_logprobs=0), plain))
    return body


def _num_logprobs(answer: Answered) -> int:
    content = answer.choice.logprobs.content if answer.choice.logprobs else None
    return min((len(entry.top_logprobs) for entry in content), default=0) if content else 0


def _has_ids(answer: Answered) -> bool:
    content = answer.choice.logprobs.content if answer.choice.logprobs else None
    return bool(content) and all(entry.token.startswith("token_id:") for entry in content or [])


def _fits(answer: Answered) -> bool:
    text = answer.choice.message.content or ""
    try:
        value = json.loads(text)
    except ValueError:
        # Cut short: all that can be said is whether it began as an object does.
        return answer.choice.finish_reason == "length" and text.lstrip().startswith("{")
    return isinstance(value, dict) and "answer" in value


def _require_reject(failure: Failure, where: str) -> None:
    """A refused field means that the endpoint lacks it; anything else is trouble of another kind."""
    if failure.action != "reject":
        raise _unusable(failure, where)


def _unusable(failure: Failure, where: str) -> RemoteError:
    if failure.action == "abort":
        return abort_error(failure, where)
    if failure.action == "reject":
        return RemoteError(
            f"the endpoint refuses the run's settings: {failure.message}",
            where=where,
            fix="change teacher.closed.pipeline and teacher.closed.model.name as the message says",
        )
    return RemoteError(
        f"the endpoint does not answer: {failure.message}",
        where=where,
        fix="check teacher.closed.endpoint.base_url, the network and the proxies; run again later: whatever "
        "is stored is kept",
    )
