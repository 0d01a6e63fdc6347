"""Whether a student's tokens fit those that a teacher store was written in: what training refuses."""

from __future__ import annotations

from raystill.config.prepared import find_prepared
from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.scorer import signal_identity
from raystill.store.store import TeacherStore
from raystill.text.chat import ChatFormat
from raystill.text.token_match import (
    StoredTokens,
    TokenMatch,
    load_teacher_tokenizer,
    match_stored,
    relate_tokenizers,
)
from raystill.text.tokenizer import tokenizer_sha256


def match_tokenizers(config: Config, store: TeacherStore, chat: ChatFormat, needs_signal: bool) -> TokenMatch:
    """Compare the student's tokenizer with the one that the store was written with, or, where the KD term
    needs the stored logprobs, with their scorer's.

    Equal ids with extra entries on one side (a padded vocabulary) are accepted, and where the KD term needs
    the stored logprobs so is a student that has all of the teacher's tokens under other numbers. Raises
    DataError if it lacks some, with examples.
    """
    identity = signal_identity(store) if needs_signal else store.identity
    stored = StoredTokens(identity.tokenizer_sha256, identity.chat_template_sha256)
    found = match_stored(stored, chat, config.teacher.open, translates=needs_signal)
    if isinstance(found, TokenMatch):
        return found
    if needs_signal:
        others = {"store": identity.tokenizer_sha256 or "none", "teacher.open": found.teacher_sha256}
        raise _unteachable(found.why, chat, others)
    return TokenMatch(same_ids=False, same_template=found.same_template)


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
    teacher = load_teacher_tokenizer(section.open)
    present = tokenizer_sha256(teacher)
    if present == tokenizer_sha256(chat.tokenizer):
        return
    related = relate_tokenizers(teacher, chat, translates=True)
    if isinstance(related, str):
        raise _unteachable(related, chat, {"teacher.open": present})


def _unteachable(why: str, chat: ChatFormat, others: dict[str, str]) -> DataError:
    hashes = {"student": tokenizer_sha256(chat.tokenizer), **others}
    return DataError(
        f"the teacher's logprobs can't teach this student: their tokenizers differ ({why}); hashes: "
        + ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(hashes.items())),
        where="student.tokenizer",
        fix="give the student the teacher's tokenizer, or train on the text alone: train.sft, or "
        "losses.kl_weight: 0",
    )
