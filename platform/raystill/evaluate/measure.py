"""What one checkpoint does on the held-out prompts: its completions, and its distance from the teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.evaluate.agreement import measure_agreement
from raystill.evaluate.gap import ModelOutputs, score_all
from raystill.evaluate.generation import GreedySettings, generate_greedy
from raystill.evaluate.models import Contestant, LoadedModel, load_model
from raystill.evaluate.own_tokens import read_in_own_tokens, relate_tokens
from raystill.store.records import TeacherRow
from raystill.text.prompt_row import Prompt
from raystill.text.token_match import StoredTokens


def measure_contestant(
    contestant: Contestant,
    prompts: Sequence[Prompt],
    rows: Sequence[TeacherRow],
    *,
    tokens: StoredTokens,
    config: Config,
) -> ModelOutputs:
    """Load a checkpoint, complete every prompt greedily, and teacher-force it over the teacher's completions.

    The model reads the prompts as it was trained on them (`own_tokens`); how close it is to the teacher is
    known only where it has the teacher's tokens. Raises DataError if the checkpoint is missing or broken.
    """
    started = time.monotonic()
    loaded = load_model(contestant.directory, config.device.type)
    try:
        vocab_size = int(loaded.model.config.get_text_config().vocab_size)
        own = relate_tokens(contestant.directory, loaded.tokenizer, vocab_size, config, tokens)
        read = read_in_own_tokens(rows, own)
        return _measure(loaded, contestant, prompts, read, config.evaluation.batch_size, started)
    except DataError as error:
        raise DataError(
            f"{contestant.label}: {error.what}", where=str(contestant.directory), fix=error.problems[0].fix
        ) from error


def _measure(
    loaded: LoadedModel,
    contestant: Contestant,
    prompts: Sequence[Prompt],
    rows: Sequence[TeacherRow],
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
