"""The held-out prompts and the teacher's answers to them, paired one to one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from raystill.config.schema import Config
from raystill.config.signal_source import evaluates_signals
from raystill.errors import DataError
from raystill.evaluate.tasks import validate_references
from raystill.run.paths import RunPaths
from raystill.store.identity import StoreIdentity
from raystill.store.reader import iter_rows
from raystill.store.records import TeacherRow
from raystill.store.requests import Request, load_requests
from raystill.store.scorer import signal_identity
from raystill.store.store import TeacherStore, load_store
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import load_prompts
from raystill.text.token_match import StoredTokens


@dataclass(frozen=True)
class HeldOut:
    """`rows[i]` answers `prompts[i]`; `num_without_output` prompts have no answer, or none that the teacher
    could score, and are left out. `identity` is who answered; `tokens` says whose the rows' ids are."""

    prompts: list[Prompt]
    rows: list[TeacherRow]
    num_without_output: int
    identity: StoreIdentity
    tokens: StoredTokens


def load_held_out(config: Config, paths: RunPaths) -> HeldOut:
    """Read the evaluation split and the teacher's stored completions of it.

    `evaluation.max_samples` takes a subset that doesn't depend on the order of the sources. Raises DataError
    if nothing is held out, or if a reference can't be compared with anything.
    """
    prompts = load_prompts(paths.prompt_table, "eval")
    if not prompts:
        raise DataError(
            "no prompts are held out, so nothing can be evaluated",
            where=str(paths.prompt_table),
            fix="set prompts.eval_size, and prepare again with --fresh",
        )
    validate_references(prompts)
    if config.evaluation.max_samples is not None:
        by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.id.encode("utf-8")).digest())
        prompts = by_hash[: config.evaluation.max_samples]
    store = load_store(paths.store)
    with_signal = evaluates_signals(config)
    ids = {prompt.id for prompt in prompts}
    requests = {
        request.key: request
        for request in load_requests(paths.requests)
        if request.split == "eval" and request.prompt_id in ids
    }
    answers = _load_answers(store, requests, with_signal=with_signal)
    answered = [prompt for prompt in prompts if prompt.id in answers]
    speaker = signal_identity(store) if with_signal else store.identity
    return HeldOut(
        prompts=answered,
        rows=[answers[prompt.id] for prompt in answered],
        num_without_output=len(prompts) - len(answered),
        identity=store.identity,
        tokens=StoredTokens(speaker.tokenizer_sha256, speaker.chat_template_sha256),
    )


def _load_answers(
    store: TeacherStore, requests: Mapping[str, Request], *, with_signal: bool
) -> dict[str, TeacherRow]:
    """The first sample of each prompt, by the prompt's id in this run.

    The id and the index in a row are those of whoever stored it: another run, or the file it was imported
    from.
    """
    answers: dict[str, TeacherRow] = {}
    first: dict[str, int] = {}
    for row in iter_rows(store, keys=frozenset(requests), with_signal=with_signal):
        request = requests[row.key]
        if request.sample_index < first.get(request.prompt_id, request.sample_index + 1):
            first[request.prompt_id] = request.sample_index
            answers[request.prompt_id] = row
    return answers
