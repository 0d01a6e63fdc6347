"""Generating with a closed teacher, from the checked configuration to answers in the store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from raystill.errors import ConfigError
from raystill.run.stage import StageContext
from raystill.store.claim import release_store
from raystill.store.recover import recover_journals
from raystill.store.store import TeacherStore
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.client_worker import ClientBlueprint
from raystill.teacher.api.engine import EngineSettings, rows_in_flight
from raystill.teacher.api.gate import GateActor, GateSettings
from raystill.teacher.api.identify import ENGINE_NAME, KnownEndpoint
from raystill.teacher.api.ledger import Spending, load_spending
from raystill.teacher.api.meet import meet_endpoint
from raystill.teacher.api.plan import Estimate, require_budget
from raystill.teacher.api.probe import Capabilities, capability_notes
from raystill.teacher.api.run_clients import run_clients
from raystill.teacher.batch_api.ask import ask_in_batches, has_live_batches, require_no_live_batches
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.progress import Progress
from raystill.teacher.row_work import GenerateWork
from raystill.teacher.sampling import sampling_of

# After its own deadline a request has ended or its process has; a permit older than that is taken back.
_LEASE_FACTOR = 1.5
_SPARE_PLACES = 64


@dataclass(frozen=True)
class ApiRun:
    """What asking came to: this run's progress, and the store's whole cost."""

    progress: Progress
    spending: Spending

    def metrics(self) -> dict[str, Any]:
        """What the stage's manifest says about the run; costs are the store's, recomputed from the disk."""
        amounts = self.progress.amounts
        return {
            "tokens_per_s": round(self.progress.tokens_per_s, 1),
            "engine": ENGINE_NAME,
            "api_requests": int(amounts.get("requests", 0)),
            "api_retries": int(amounts.get("retries", 0)),
            "cost_usd": round(self.spending.spent_usd, 9),
            "at_risk_usd": round(self.spending.at_risk_usd, 9),
        }


def ask_endpoint(
    context: StageContext,
    endpoint: KnownEndpoint,
    store: TeacherStore,
    plan: RequestPlan,
    estimate: Estimate,
) -> ApiRun:
    """Ask for everything that `plan` lacks. Ray must be running.

    Raises ConfigError, before any request, for an estimate that needs a cap and for a JSON Schema or
    logprobs that the endpoint can't do; RemoteError where the endpoint refuses or the budget is used up.
    """
    spending = load_spending(store)
    is_batch = endpoint.closed.endpoint.mode == "batch"
    if not is_batch:
        require_no_live_batches(store)
    if not plan.shards and not (is_batch and has_live_batches(store)):
        release_store(store)
        return ApiRun(Progress(0), spending)
    require_budget(endpoint, estimate)
    known = asyncio.run(meet_endpoint(endpoint, context.output, store, spending))
    for note in _notes(endpoint, known):
        context.events.emit("note", message=note)
    _require_capabilities(endpoint, known, plan)
    work = _work(endpoint, known, store)
    if is_batch:
        return ApiRun(ask_in_batches(context, endpoint, known, store, plan, work), load_spending(store))
    progress = run_clients(plan.shards, _blueprint(endpoint, known, spending), store, work, context.events)
    # What a worker left behind that died after its last shard.
    recover_journals(store)
    release_store(store)
    return ApiRun(progress, load_spending(store))


def _notes(endpoint: KnownEndpoint, known: Capabilities) -> list[str]:
    config = endpoint.config
    has_scorer = config.teacher.open is not None
    notes = capability_notes(known, wanted_logprobs=endpoint.wanted_logprobs, has_scorer=has_scorer)
    signals = config.teacher.signals
    if signals.num_logprobs and endpoint.closed.model.tokenizer is None and not has_scorer:
        notes.append(
            "the store will hold text alone: logprobs need teacher.closed.model.tokenizer, or a teacher.open "
            "that scores; train.sft and losses.kl_weight: 0 are possible, KD losses are not"
        )
    return notes


def _require_capabilities(endpoint: KnownEndpoint, known: Capabilities, plan: RequestPlan) -> None:
    if plan.has_schemas and not known.has_json_schema:
        raise ConfigError(
            "the endpoint does not force completions into a JSON Schema, and prompts ask for one",
            "teacher.base.tool_schema",
            "use an endpoint with structured outputs, or remove the key (and the prompts' sampling."
            "json_schema) and let curate drop what doesn't fit",
        )
    if endpoint.config.teacher.signals.capture == "generation" and endpoint.wanted_logprobs:
        if known.max_logprobs:
            return
        raise ConfigError(
            "teacher.signals.capture is generation, and the endpoint returns no logprobs",
            "teacher.signals.capture",
            "set it to auto and train on the text (train.sft, losses.kl_weight: 0), or add a teacher.open "
            "that scores",
        )


def _blueprint(endpoint: KnownEndpoint, known: Capabilities, spending: Spending) -> ClientBlueprint:
    closed = endpoint.closed
    limits, num_clients = closed.limits, closed.limits.num_clients
    prices = Prices.from_config(closed.prices)
    gate_settings = GateSettings(
        max_in_flight=closed.pipeline.batch_size,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        max_cost_usd=closed.budget.max_cost_usd,
        max_new_tokens=closed.pipeline.max_new_tokens,
        spent_usd=spending.spent_usd,
        at_risk_usd=spending.at_risk_usd,
        lease_seconds=_LEASE_FACTOR * closed.endpoint.request_timeout_s if num_clients > 1 else None,
    )
    settings = EngineSettings(
        shape=known.shape(closed.model.name),
        prices=prices,
        where=endpoint.where,
        max_in_flight=closed.pipeline.batch_size,
        max_attempts=closed.endpoint.max_attempts,
        reasoning=endpoint.config.teacher.base.reasoning,
    )
    return ClientBlueprint(
        config=endpoint.config,
        settings=settings,
        gate_settings=gate_settings,
        gate=_start_gate(gate_settings) if num_clients > 1 else None,
        num_clients=num_clients,
        checks_ids=known.has_unique_ids,
        has_chat=endpoint.chat is not None,
    )


def _start_gate(settings: GateSettings) -> Any:
    """The gate as an actor; it ends with the last handle to it."""
    import ray

    actor: Any = ray.remote(GateActor)
    # Everyone who waits for leave holds one of its places, and so does who brings a permit back.
    places = 2 * rows_in_flight(settings.max_in_flight) + _SPARE_PLACES
    return actor.options(num_cpus=0, max_concurrency=places).remote(settings)


def _work(endpoint: KnownEndpoint, known: Capabilities, store: TeacherStore) -> GenerateWork:
    config = endpoint.config
    wanted = endpoint.wanted_logprobs
    return GenerateWork(
        tokenizer_directory="",
        teacher_id=store.identity.teacher_id,
        sampling_by_split={
            split: sampling_of(config, split, endpoint.tool_schema) for split in ("train", "eval")
        },
        num_logprobs=min(wanted, known.max_logprobs),
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
        trust_remote_code=False,
        reasoning=config.teacher.base.reasoning,
        tool_schema=endpoint.tool_schema,
    )
