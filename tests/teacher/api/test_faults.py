"""The fault matrix of an endpoint: what is asked again, what is rejected, what stops the run. Never text."""

from __future__ import annotations

import pytest
from asking import ask, messages_of, request_of

from raystill.errors import RemoteError
from raystill.teacher.api.engine import ApiRowError
from raystill.teacher.engine import Generation
from raystill.testing.fault_proxy import FaultProxy
from raystill.testing.faults import parse_fault
from raystill.testing.scripted_answer import answers_messages
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Capabilities, Latency


def right(index: int, outcome: object, text: str = "") -> bool:
    """Whether `outcome` is the answer to row `index` and to no other."""
    assert isinstance(outcome, Generation), outcome
    return answers_messages(messages_of(index, text), outcome.completion or "")


@pytest.mark.parametrize(
    "fault",
    [
        "429", "429=0.2", "429=date+1", "500", "502", "503=0.1", "504", "reset", "reset_after", "half_body",
        "html", "bad_json", "error_200", "empty_choices", "wrong_id", "duplicate", "reorder", "latency=0.3",
    ],
)  # fmt: skip
def test_what_passes_is_asked_again_and_every_row_gets_its_own_answer(fault: str) -> None:
    """F5, F6, F8, F11."""
    with ScriptedApi() as api, FaultProxy(api.url, [parse_fault(f"{fault}@2,5,6,11")]) as proxy:
        asked = ask(f"{proxy.url}/v1", [request_of(index) for index in range(20)], in_flight=4)
    assert all(right(index, outcome) for index, outcome in enumerate(asked.generations))
    kind = parse_fault(fault).kind
    if kind in ("latency", "reorder", "duplicate"):
        assert asked.heard.requests == 20
    else:
        assert 21 <= asked.heard.requests <= 28
    assert asked.heard.retries == asked.heard.requests - 20
    assert asked.heard.in_flight == 0


@pytest.mark.parametrize("fault", ["hang", "slow=1"])
def test_a_request_that_hangs_ends_at_its_deadline_and_holds_up_nobody(fault: str) -> None:
    """F10."""
    with ScriptedApi() as api, FaultProxy(api.url, [parse_fault(f"{fault}@3")]) as proxy:
        requests = [request_of(index) for index in range(30)]
        asked = ask(f"{proxy.url}/v1", requests, in_flight=4, timeout_s=4.0)
    assert all(right(index, outcome) for index, outcome in enumerate(asked.generations))
    assert [entry.code for entry in asked.heard.risks] == ["timeout"]
    assert asked.heard.risks[0].at_risk_usd > 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("500", "server_error"), ("429=0", "rate_limited"), ("html", "malformed"), ("bad_json", "malformed"),
        ("error_200", "server_error"), ("empty_choices", "malformed"), ("reset", "connection"),
    ],
)  # fmt: skip
def test_a_row_is_given_up_after_its_attempts_with_the_reason(fault: str, code: str) -> None:
    """F6, F8."""
    with ScriptedApi() as api, FaultProxy(api.url, [parse_fault(f"{fault}:1.0")]) as proxy:
        asked = ask(f"{proxy.url}/v1", [request_of(0)], max_attempts=3)
    (error,) = asked.outcomes
    assert isinstance(error, ApiRowError)
    assert error.attempts == 3 == asked.heard.requests
    if fault != "error_200":
        assert error.code == code


def test_null_content_is_never_text() -> None:
    """F8."""
    with ScriptedApi() as api, FaultProxy(api.url, [parse_fault("null_content@1")]) as proxy:
        asked = ask(f"{proxy.url}/v1", [request_of(0)])
    (error,) = asked.outcomes
    assert isinstance(error, ApiRowError)
    assert error.code == "empty"
    assert error.cost_usd > 0  # it was billed


@pytest.mark.parametrize(
    ("fault", "hint"),
    [("401", "check the key"), ("403", "check its permissions"), ("404", "check teacher.closed.model")],
)
def test_a_refused_key_or_model_stops_everyone(fault: str, hint: str) -> None:
    """F7."""
    with ScriptedApi() as api, FaultProxy(api.url, [parse_fault(f"{fault}:1.0")]) as proxy:
        asked = ask(f"{proxy.url}/v1", [request_of(index) for index in range(40)], in_flight=2)
    assert asked.heard.requests < 3
    assert all(isinstance(outcome, RemoteError) for outcome in asked.outcomes)
    assert hint in str(asked.outcomes[0])


def test_the_key_is_never_shown_and_not_sent_on_by_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "canary-key-123456789"
    with ScriptedApi(capabilities=Capabilities(api_key="another")) as api:
        asked = ask(f"{api.url}/v1", [request_of(0)], key=key)
        assert key not in str(asked.outcomes[0])
        assert asked.heard.requests == 1
    with ScriptedApi(capabilities=Capabilities(api_key=key)) as api:
        assert right(0, ask(f"{api.url}/v1", [request_of(0)], key=key).outcomes[0])


def test_every_request_of_a_burst_of_429_is_asked_again_once() -> None:
    """F5: over HTTP."""
    numbers = ",".join(str(number) for number in range(20, 36))
    fault = parse_fault(f"429=1@{numbers}")
    with ScriptedApi(latency=Latency(0.05)) as api, FaultProxy(api.url, [fault]) as proxy:
        asked = ask(f"{proxy.url}/v1", [request_of(index) for index in range(200)], in_flight=16)
    assert all(right(index, outcome) for index, outcome in enumerate(asked.generations))
    assert asked.heard.retries == 16
    assert asked.heard.failures == ["rate_limited"] * 16 and asked.heard.in_flight == 0


def test_marked_answers_are_kept_with_their_flags_or_rejected() -> None:
    """F9: stored with a flag."""
    texts = ["<<refuse>>", "<<filter>>", "<<empty>>", "<<error>>", "<<long>>", ""]
    with ScriptedApi() as api:
        asked = ask(api.base_url, [request_of(index, text) for index, text in enumerate(texts)])
    refused, filtered, empty, bad, long, plain = asked.outcomes
    assert isinstance(refused, Generation) and refused.flags == ("refusal",)
    assert refused.finish_reason == "content_filter"
    assert isinstance(filtered, Generation) and filtered.flags == ("content_filter",)
    assert isinstance(empty, ApiRowError) and empty.code == "empty"
    assert isinstance(bad, ApiRowError) and (bad.code, bad.attempts) == ("content_filter", 1)
    assert isinstance(long, Generation) and long.finish_reason == "length"
    assert long.flags == ("truncated",)
    assert isinstance(plain, Generation) and (plain.flags, plain.finish_reason) == ((), "stop")


def test_thoughts_are_kept_dropped_or_trained_on_and_paid_for() -> None:
    with ScriptedApi(capabilities=Capabilities(reasoning_tokens=7)) as api:
        kept, dropped, trained = (
            ask(api.base_url, [request_of(0)], reasoning=mode).generations[0]
            for mode in ("keep", "drop", "train")
        )
    assert kept.reasoning == " ".join(["hm"] * 7)
    assert dropped.reasoning is None and dropped.completion == kept.completion
    assert trained.completion == f"<think>\n{kept.reasoning}\n</think>\n\n{kept.completion}"
    assert kept.usage is not None and kept.usage.reasoning_tokens == 7
    assert kept.usage.cost_usd == pytest.approx(
        kept.usage.prompt_tokens * 1e-6 + kept.usage.completion_tokens * 2e-6
    )
