"""What one checkpoint does on the held-out prompts: its completions, and its distance from the teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence

from raystill.errors import DataError
from raystill.evaluate.agreement import measure_agreement
from raystill.evaluate.gap import ModelOutputs, score_all
from raystill.evaluate.generation import GreedySettings, generate_greedy
from raystill.evaluate.models import Contestant, LoadedModel, load_model
from raystill.store.records import TeacherRow
from raystill.text.prompt_row import Prompt
from raystill.text.tokenizer import tokenizer_sha256 as text_tokenizer_sha256


def measure_contestant(
    contestant: Contestant,
    prompts: Sequence[Prompt],
    rows: Sequence[TeacherRow],
    *,
    tokenizer_sha256: str,
    batch_size: int,
    device: str,
) -> ModelOutputs:
    """Load a checkpoint, complete every prompt greedily, and teacher-force it over the teacher's completions.

    The model reads exactly the prompt token ids that the teacher read, so its tokenizer must be the one of
    `tokenizer_sha256` ("" skips the check). Raises DataError if it isn't, or if the checkpoint is missing or
    broken.
    """
    started = time.monotonic()
    loaded = load_model(contestant.directory, device)
    try:
        _validate_tokenizer(loaded, tokenizer_sha256)
        return _measure(loaded, contestant, prompts, rows, batch_size=batch_size, started=started)
    except DataError as error:
        raise DataError(
            f"{contestant.label}: {error.what}", where=str(contestant.directory), fix=error.problems[0].fix
        ) from error


def _validate_tokenizer(loaded: LoadedModel, expected: str) -> None:
    if expected and text_tokenizer_sha256(loaded.tokenizer) != expected:
        raise DataError(
            "its tokenizer is not the teacher's, so their tokens can't be compared",
            fix="set student.tokenizer to the teacher's tokenizer and train again",
        )


def _measure(
    loaded: LoadedModel,
    contestant: Contestant,
    prompts: Sequence[Prompt],
    rows: Sequence[TeacherRow],
    *,
    batch_size: int,
    started: float,
) -> ModelOutputs:
    settings = GreedySettings(
        max_new_tokens=contestant.max_new_tokens,
        eos_ids=loaded.eos_ids,
        pad_id=loaded.pad_id,
        batch_size=batch_size,
        context=loaded.context,
        padding_side=contestant.padding_side,
    )
    generated = generate_greedy(loaded.model, [row.prompt_token_ids.tolist() for row in rows], settings)
    completions = [
        loaded.tokenizer.decode(entry.token_ids, skip_special_tokens=contestant.skip_special_tokens)
        for entry in generated
    ]
    return ModelOutputs(
        key=contestant.key,
        label=contestant.label,
        model=contestant.directory.name,
        parameters=loaded.parameters,
        completions=completions,
        num_tokens=[len(entry.token_ids) for entry in generated],
        finish_reasons=[entry.finish_reason for entry in generated],
        verdicts=score_all(completions, prompts),
        agreement=measure_agreement(loaded.model, rows, pad_id=loaded.pad_id, context=loaded.context),
        num_without_room=sum(not entry.token_ids for entry in generated),
        seconds=time.monotonic() - started,
    )
