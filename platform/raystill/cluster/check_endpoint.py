"""Endpoints of a closed teacher and of a closed judge: there, with a key, able to do what the run asks."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raystill.cluster.findings import Findings
from raystill.config.schema import Config
from raystill.errors import RemoteError
from raystill.run.paths import RunPaths

if TYPE_CHECKING:
    from raystill.store.store import TeacherStore
    from raystill.teacher.api.identify import KnownEndpoint
    from raystill.teacher.api.meet import Asked
    from raystill.text.chat import ChatFormat

_CONNECT_SECONDS = 10.0


def check_teacher_endpoint(config: Config, findings: Findings, *, asks: bool) -> ChatFormat | None:
    """The endpoint of `teacher.closed`; returns the served model's format, where it is known.

    With `asks`, a few small requests find out what it can do: they are billed. Raises as asking does.
    """
    from raystill.teacher.api.identify import identify_endpoint

    endpoint = identify_endpoint(config)
    _connect(endpoint, "teacher", findings)
    if not endpoint.wanted_logprobs:
        findings.warn(
            "endpoint",
            "no logprobs will be asked for: nothing says which token ids they would belong to",
            where="teacher.closed.model.tokenizer",
            fix="name the served model's tokenizer, or let an open teacher score the answers",
        )
    wanted = config.teacher.signals.num_logprobs
    known = _find_out(endpoint, wanted, RunPaths.from_config(config), "endpoint", findings, asks=asks)
    if known is not None:
        _compare(endpoint, known, wanted, findings)
    return endpoint.chat


def check_judge(config: Config, findings: Findings, *, asks: bool) -> None:
    """The judge of `grade`, where there is one: as a closed teacher, or an open one's files."""
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.grade_stage import judge_config, naming_the_judge, preflight_grade

    grade, paths = config.grade, RunPaths.from_config(config)
    if grade is None:
        return
    preflight_grade(config, paths)
    if grade.closed is None:
        findings.good("judge", "its files and its engine are there")
        return
    with naming_the_judge():
        endpoint = identify_endpoint(judge_config(config))
        _connect(endpoint, "grade", findings)
        judge_paths = RunPaths(paths.root, paths.judge_store)
        known = _find_out(endpoint, 0, judge_paths, "judge", findings, asks=asks)
    if known is not None and grade.structured and not known.capabilities.has_json_schema:
        findings.warn(
            "judge",
            "the endpoint does not force replies into a JSON Schema",
            where="grade.structured",
            fix="set it to false: the reply is searched for the score",
        )


def describe(asked: Asked) -> str:
    """`20 logprobs per token, seed, JSON Schema; not: n` of what an endpoint can do."""
    known = asked.capabilities
    abilities = {
        "several answers per request (n)": known.has_choices,
        "a seed": known.has_seed,
        "JSON Schemas": known.has_json_schema,
        "ids of answers that differ": known.has_unique_ids,
    }
    can = [name for name, has in abilities.items() if has]
    lacks = [name for name, has in abilities.items() if not has]
    if known.asked_logprobs:
        ids = ", with token ids" if known.has_token_ids else ""
        number = min(known.max_logprobs, known.asked_logprobs)
        (can if number else lacks).append(
            f"top {number} logprobs of {known.asked_logprobs} wanted{ids}" if number else "logprobs"
        )
    return f"it gives {', '.join(can) or 'text alone'}" + (f"; not {', '.join(lacks)}" if lacks else "")


def _connect(endpoint: KnownEndpoint, section: str, findings: Findings) -> None:
    parts = urlsplit(endpoint.address.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RemoteError(
            f"nobody answers at the endpoint: {error}",
            where=endpoint.where,
            fix=f"check {section}.closed.endpoint and the network, or start the server",
        ) from error
    key = endpoint.closed.endpoint.api_key_env
    sent = f"the key is in {key}" if key else "no key is sent"
    findings.good("endpoint" if section == "teacher" else "judge", f"{endpoint.where} answers; {sent}")


def _find_out(
    endpoint: KnownEndpoint, wanted: int, paths: RunPaths, area: str, findings: Findings, *, asks: bool
) -> Asked | None:
    """Ask, where that was asked for; what it costs is said before, and what it has cost after."""
    from raystill.teacher.api.meet import ask_capabilities, probe_cost_usd
    from raystill.teacher.api.probe import MAX_PROBE_REQUESTS

    most = f"at most {MAX_PROBE_REQUESTS} small requests"
    dear = probe_cost_usd(endpoint)
    price = f", at most ${dear:.4f}" if dear else ", billed as the provider does: no prices are configured"
    if not asks:
        findings.good(area, f"what it can do was not asked: raystill check --probe does ({most}{price})")
        return None
    asked = asyncio.run(ask_capabilities(endpoint, wanted, _existing_store(paths)))
    paid = f", ${asked.cost_usd:.6f}" if dear else ""
    risk = f" and up to ${asked.at_risk_usd:.6f} for answers that never came" if asked.at_risk_usd else ""
    findings.good(area, f"{describe(asked)} ({asked.requests} requests{paid}{risk})")
    return asked


def _compare(endpoint: KnownEndpoint, asked: Asked, wanted: int, findings: Findings) -> None:
    from raystill.teacher.api.probe import capability_notes

    config, known = endpoint.config, asked.capabilities
    needed = endpoint.wanted_logprobs and wanted
    for note in capability_notes(known, wanted_logprobs=needed, has_scorer=config.teacher.open is not None):
        findings.warn(
            "endpoint",
            note,
            where=endpoint.where,
            fix="use an endpoint that can, as vLLM's server does; or leave it: the run takes what there is",
        )
    if config.teacher.base.tool_schema is not None and not known.has_json_schema:
        findings.warn(
            "endpoint",
            "the endpoint does not force completions into a JSON Schema, and prompts ask for one",
            where="teacher.base.tool_schema",
            fix="use an endpoint with structured outputs, or remove the key: curate drops what doesn't fit",
        )


def _existing_store(paths: RunPaths) -> TeacherStore | None:
    """The store whose budget the questions belong to, where a run has begun one."""
    from raystill.store.store import load_store

    return load_store(paths.store) if (paths.store / "store.json").exists() else None
