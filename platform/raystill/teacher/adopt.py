"""Answers that a store holds already become a run's requests: no teacher is asked, no key is made anew.

The rows keep their keys, and so does the store its identity: whoever gave the answers is who the run's
teacher is, whatever `teacher.open` scores them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from raystill.store.conversations import iter_answers
from raystill.store.requests import Request, save_requests
from raystill.store.store import TeacherStore
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.sampling import EVAL_SPLIT
from raystill.text.prompt_row import Split
from raystill.text.prompt_table import iter_prompt_batches


@dataclass(frozen=True)
class Adopted:
    """The plan, all of it done. `unused` rows are further answers of held-out prompts, or of prompts that
    `prepare` left out."""

    plan: RequestPlan
    unused: int


def adopt_answers(store: TeacherStore, prompt_table: Path, table: Path) -> Adopted:
    """Take every stored answer of the table's prompts; of a held-out prompt the first one. The requests are
    published in `table`.

    A prompt's answers are numbered anew, in the order of their own sample index and key: several imported
    ones may all be the first sample. Raises DataError naming a missing or damaged part.
    """
    splits: dict[str, Split] = {
        prompt.id: prompt.split for batch in iter_prompt_batches(prompt_table) for prompt in batch
    }
    by_prompt: dict[str, list[tuple[int, str]]] = defaultdict(list)
    num_rows = 0
    for answer in iter_answers(store):
        num_rows += 1
        if answer.conversation in splits:
            by_prompt[answer.conversation].append((answer.sample_index, answer.key))
    requests: list[Request] = []
    for prompt_id, found in by_prompt.items():
        split = splits[prompt_id]
        taken = sorted(found)[: 1 if split == EVAL_SPLIT else None]
        for sample_index, (_, key) in enumerate(taken):
            requests.append(Request(key, prompt_id, split, sample_index))
    save_requests(table, requests)
    plan = RequestPlan(table, len(requests), (), reused=len(requests))
    return Adopted(plan, num_rows - len(requests))
