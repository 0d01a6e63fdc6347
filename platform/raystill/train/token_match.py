"""How a student's tokens relate to those that a teacher store was written in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raystill.config.prepared import find_prepared
from raystill.config.schema import Config
from raystill.config.teacher import OpenTeacher
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        teacher = _load_teacher(config.teacher.open)
        present = tokenizer_sha256(teacher)
        if present == identity.tokenizer_sha256:
            related = _relate(teacher, chat, needs_signal)
            if isinstance(related, TokenMatch):
                return replace(related, same_template=related.translation is None and same_template)
            why = related
    if needs_signal:
        others = {"store": identity.tokenizer_sha256, "teacher.open": present}
        raise _unteachable(why, chat, others)
    return TokenMatch(same_ids=False, same_template=same_template)


def foresee_tokens(config: Config, chat: ChatFormat) -> None:
    """Raise DataError if `teacher.open`, whose logprobs a KD term is going to read from the store, has tokens
    that the student lacks: what `match_tokenizers` would find once they are paid for.

    A store whose tokens the configuration doesn't tell (one from elsewhere, a prepared dataset, logprobs that
    an endpoint returns) is left to `match_tokenizers`.
    """
    section = config.teacher
    is_scored = section.closed is None or section.signals.capture == "score"
    is_foreign = section.base.from_store is not None or find_prepared(section) is not None
    if section.open is None or is_foreign or not is_scored:
        return
    teacher = _load_teacher(section.open)
    present = tokenizer_sha256(teacher)
    if present == tokenizer_sha256(chat.tokenizer):
        return
    related = _relate(teacher, chat, needs_signal=True)
    if isinstance(related, str):
        raise _unteachable(related, chat, {"teacher.open": present})


def _load_teacher(teacher: OpenTeacher) -> PreTrainedTokenizerBase:
    return load_tokenizer(teacher.model.name, teacher.model.revision, teacher.model.trust_remote_code)


def _relate(teacher: PreTrainedTokenizerBase, chat: ChatFormat, needs_signal: bool) -> TokenMatch | str:
    """How tokenizers of different hashes relate, or why they don't; templates are not compared."""
    comparison = compare_tokenizers(teacher, chat.tokenizer)
    if comparison.compatible:
        return TokenMatch(same_ids=True, same_template=False)
    translation = map_vocabulary(teacher, chat.tokenizer)
    if needs_signal and translation.is_complete:
        if teacher.eos_token_id is not None:
            translation = translation.with_pair(int(teacher.eos_token_id), chat.turn_end_id)
        return TokenMatch(same_ids=True, same_template=False, translation=translation)
    return f"{comparison.describe()}; {translation.describe()}"


def _unteachable(why: str, chat: ChatFormat, others: dict[str, str]) -> DataError:
    hashes = {"student": tokenizer_sha256(chat.tokenizer), **others}
    return DataError(
        f"the teacher's logprobs can't teach this student: their tokenizers differ ({why}); hashes: "
        + ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(hashes.items())),
        where="student.tokenizer",
        fix="give the student the teacher's tokenizer, or train on the text alone: train.sft, or "
        "losses.kl_weight: 0",
    )
