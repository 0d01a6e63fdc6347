"""What a probe finds out, what it says about what is missing, and what it costs (I28, I29)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import in_loop, request_of

from raystill.errors import RemoteError
from raystill.teacher.api.address import Address
from raystill.teacher.api.client import ApiClient
from raystill.teacher.api.probe import (
    PROBE_KEY,
    Capabilities,
    capability_notes,
    confirm_endpoint,
    load_capabilities,
    probe_endpoint,
    save_capabilities,
)
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Capabilities as Script


def probe(model: str = "scripted", num_logprobs: int = 20, **script: Any) -> tuple[Capabilities, int]:
    with ScriptedApi(capabilities=Script(**script)) as api:

        async def run() -> Capabilities:
            address = Address(api.base_url, "localhost/v1", True)
            async with ApiClient(address, None, timeout_s=60, connections=1, checks_ids=False) as client:
                return await probe_endpoint(
                    lambda body: client.send(PROBE_KEY, body),
                    request_of(0, num_logprobs=num_logprobs), model, "here",
                )  # fmt: skip

        return in_loop(run), api.counts.requests


def test_an_endpoint_that_can_do_everything() -> None:
    known, requests = probe(max_top_logprobs=64)
    assert (known.max_logprobs, known.has_seed, known.has_choices, known.has_json_schema) == (
        21,
        True,
        True,
        True,
    )
    assert known.has_unique_ids and not known.has_token_ids
    assert requests <= 8
    assert capability_notes(known, wanted_logprobs=20, has_scorer=False) == []


@pytest.mark.parametrize(("cap", "found"), [(20, 20), (19, 8), (5, 5), (0, 0)])
def test_logprobs_step_down_to_what_the_endpoint_gives(cap: int, found: int) -> None:
    """I28, I29: with the cap, and what stays possible without."""
    known, _ = probe(max_top_logprobs=cap)
    assert known.max_logprobs == found
    notes = " ".join(capability_notes(known, wanted_logprobs=20, has_scorer=False))
    if found == 0:
        assert "returns no logprobs" in notes and "losses.kl_weight" in notes
    elif found < 20:
        assert f"at most {found} logprobs" in notes and "--max-logprobs" in notes
    else:
        assert notes == ""


def test_fields_that_are_ignored_count_as_missing_too() -> None:
    """I29."""
    known, _ = probe(max_top_logprobs=0, has_json_schema=False, max_choices=1, ignores=True)
    assert (known.max_logprobs, known.has_choices, known.has_json_schema) == (0, False, False)


def test_a_missing_seed_is_said() -> None:
    known, _ = probe(has_seed=False, num_logprobs=0)
    assert not known.shape("m").sends_seed
    assert "takes no seed" in capability_notes(known, wanted_logprobs=0, has_scorer=False)[0]


def test_a_wrong_model_costs_one_request() -> None:
    """I10."""
    with pytest.raises(RemoteError, match="does not exist"):
        probe(model="other")


def test_what_was_found_out_is_kept_for_the_same_endpoint_and_model(tmp_path: Path) -> None:
    known, _ = probe()
    path = tmp_path / "endpoint.json"
    save_capabilities(path, "http://a/v1", "m", known)
    assert load_capabilities(path, "http://a/v1", "m", 20) == known
    assert load_capabilities(path, "http://b/v1", "m", 20) is None
    assert load_capabilities(path, "http://a/v1", "n", 20) is None
    assert load_capabilities(path, "http://a/v1", "m", 8) is None
    path.write_text("{")
    assert load_capabilities(path, "http://a/v1", "m", 20) is None


def test_a_known_endpoint_is_confirmed_by_one_request() -> None:
    with ScriptedApi() as api:

        async def run() -> None:
            address = Address(api.base_url, "localhost/v1", True)
            async with ApiClient(address, None, timeout_s=60, connections=1, checks_ids=False) as client:
                known = Capabilities("max_tokens", 0, False, True, True, True, True, 0)
                await confirm_endpoint(
                    lambda body: client.send(PROBE_KEY, body), request_of(0), "scripted", known, "here"
                )

        in_loop(run)
        assert api.counts.requests == 1
