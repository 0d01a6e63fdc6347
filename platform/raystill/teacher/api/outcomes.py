"""What can become of a request, and what follows: try again, reject the row, or stop the run."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass
from typing import Literal

from raystill.config.secret import masked
from raystill.errors import RemoteError
from raystill.teacher.engine import Usage

Action = Literal["throttle", "retry", "reject", "abort"]

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
# A header that asks for more is a quota's reset, not a throttle: other rows may still pass meanwhile.
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_SHOWN_CHARACTERS = 300
_ABORT_CODES = {
    "insufficient_quota": "the account has no credit left: top it up, then run again",
    "billing_hard_limit_reached": "raise the account's billing limit, then run again",
    "invalid_api_key": "check the key in the variable that teacher.closed.endpoint.api_key_env names",
    "account_deactivated": "use another account's key",
    "model_not_found": "check teacher.closed.model.name; `GET <base_url>/models` lists what the key may use",
}
_ABORT_STATUSES = {
    401: "check the key in the variable that teacher.closed.endpoint.api_key_env names",
    402: "the account has no credit left: top it up, then run again",
    403: "the key may not use this model: check its permissions and teacher.closed.model.name",
    404: "check teacher.closed.model.name and that teacher.closed.endpoint.base_url ends before /chat",
    405: "check that teacher.closed.endpoint.base_url ends before /chat",
}
_RETRY_STATUSES = (408, 409, 425)
_ROW_CODES = {
    "context_length_exceeded": "prompt_too_long",
    "string_above_max_length": "prompt_too_long",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
}


@dataclass(frozen=True)
class Failure:
    """A request without a usable answer.

    `code` becomes the reject's where the row is given up; `message` is what the endpoint said, masked and
    cut. `retry_after` is the endpoint's own wish in seconds. `usage` is set where the answer was billed, and
    `may_be_billed` where nobody knows.
    """

    action: Action
    code: str
    message: str
    retry_after: float | None = None
    fix: str = ""
    usage: Usage | None = None
    may_be_billed: bool = False


def classify_status(status: int, code: str, message: str, retry_after: float | None) -> Failure:
    """The failure that an HTTP status and the endpoint's own error code mean."""
    shown = f"HTTP {status}: {shorten(message)}" if message else f"HTTP {status}"
    if code in _ABORT_CODES:
        return Failure("abort", code, shown, fix=_ABORT_CODES[code])
    if status == 429:
        return Failure("throttle", "rate_limited", shown, retry_after)
    if status >= 500 or status in _RETRY_STATUSES:
        return Failure("retry", "server_error", shown, retry_after)
    if 300 <= status < 400:
        fix = (
            "set teacher.closed.endpoint.base_url to the final address: redirects are not followed, so that "
        )
        return Failure("abort", "redirect", shown, fix=fix + "the key never reaches another host")
    if status in _ABORT_STATUSES:
        return Failure("abort", f"http_{status}", shown, fix=_ABORT_STATUSES[status])
    if status == 413:
        return Failure("reject", "prompt_too_long", shown)
    return Failure("reject", _ROW_CODES.get(code, "bad_request"), shown)


def abort_error(failure: Failure, where: str) -> RemoteError:
    """The error that stops the run."""
    return RemoteError(f"the endpoint refuses every request: {failure.message}", where=where, fix=failure.fix)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or the seconds until an HTTP date."""
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = moment.timestamp() - time.time()
    if seconds != seconds:  # NaN
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)


def backoff_seconds(attempt: int, retry_after: float | None, noise: random.Random) -> float:
    """How long to wait after the `attempt`-th failure (from 1): the endpoint's wish, plus full jitter.

    Full jitter: uniform between 0 and a bound that doubles, so that rows which failed together don't return
    together.
    """
    bound = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1))
    if retry_after is None:
        return noise.uniform(0.0, bound)
    return retry_after + noise.uniform(0.0, min(bound, 0.1 * retry_after + 0.05))


def shorten(text: str) -> str:
    """One masked line of at most 300 characters."""
    line = " ".join(masked(text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."
