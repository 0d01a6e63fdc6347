"""How a student's tokens relate to those that a teacher store was written in."""

from __future__ import annotations

from dataclasses import dataclass

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.scorer import signal_identity
from raystill.store.store import TeacherStore
from raystill.text.chat import ChatFormat
from raystill.text.tokenizer import (
    chat_template_sha256,
    compare_tokenizers,
    load_tokenizer,
    tokenizer_sha256,
)
from raystill.text.vocabulary import VocabularyMap, map_vocabulary


@dataclass(frozen=True)
class TokenMatch:
    """How a student's tokens relate to the stored ones.

    `same_ids`: stored completion ids mean the same to the student. `same_template`: stored prompts are
    rendered as the student's own template would. `translation`, where there is one, says stored ids in the
    student's numbers.
    """

    same_ids: bool
    same_template: bool
    translation: VocabularyMap | None = None


def match_tokenizers(config: Config, store: TeacherStore, chat: ChatFormat, needs_signal: bool) -> TokenMatch:
    """Compare the student's tokenizer with the one that the store was written with, or, where the KD term
    needs the stored logprobs, with their scorer's.

    Equal ids with extra entries on one side (a padded vocabulary) are accepted, and where the KD term needs
    the stored logprobs so is a student that has all of the teacher's tokens under other numbers. Raises
    DataError if it lacks some, with examples.
    """
    identity = signal_identity(store) if needs_signal else store.identity
    if not identity.tokenizer_sha256 and not needs_signal:  # all rows are text
        return TokenMatch(same_ids=False, same_template=False)
    template = chat_template_sha256(chat.tokenizer) or ""
    same_template = template == identity.chat_template_sha256
    if tokenizer_sha256(chat.tokenizer) == identity.tokenizer_sha256:
        return TokenMatch(same_ids=True, same_template=same_template)
    why, present = "their hashes differ, and the teacher's tokenizer isn't at hand to compare them", "none"
    if config.teacher.open is not None:
        model = config.teacher.open.model
        teacher = load_tokenizer(model.name, model.revision, model.trust_remote_code)
        present = tokenizer_sha256(teacher)
        if present == identity.tokenizer_sha256:
            comparison = compare_tokenizers(teacher, chat.tokenizer)
            if comparison.compatible:
                return TokenMatch(same_ids=True, same_template=same_template)
            translation = map_vocabulary(teacher, chat.tokenizer)
            if needs_signal and translation.is_complete:
                if teacher.eos_token_id is not None:
                    translation = translation.with_pair(int(teacher.eos_token_id), chat.turn_end_id)
                return TokenMatch(same_ids=True, same_template=False, translation=translation)
            why = f"{comparison.describe()}; {translation.describe()}"
    if needs_signal:
        student = tokenizer_sha256(chat.tokenizer)
        raise DataError(
            f"the teacher's logprobs can't teach this student: their tokenizers differ ({why}); hashes: "
            f"store {identity.tokenizer_sha256[:12]}, student {student[:12]}, teacher.open {present[:12]}",
            where="student.tokenizer",
            fix="give the student the teacher's tokenizer, or train on the text alone: train.sft, or "
            "losses.kl_weight: 0",
        )
    return TokenMatch(same_ids=False, same_template=same_template)
