"""How a model's tokens relate to those that stored rows are in: the same for training and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raystill.config.teacher import OpenTeacher
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
class StoredTokens:
    """Whose tokens stored rows are in, and whose template rendered their prompts; "" where they are text."""

    tokenizer_sha256: str
    chat_template_sha256: str


@dataclass(frozen=True)
class TokenMatch:
    """How a model's tokens relate to the stored ones.

    `same_ids`: stored completion ids mean the same to the model. `same_template`: stored prompts are
    rendered as the model's own template would. `translation`, where there is one, says stored ids in the
    model's numbers.
    """

    same_ids: bool
    same_template: bool
    translation: VocabularyMap | None = None


@dataclass(frozen=True)
class TokenDifference:
    """Why stored ids mean nothing to a model; `teacher_sha256` is the tokenizer's of `teacher.open`."""

    why: str
    same_template: bool
    teacher_sha256: str = "none"


def match_stored(
    stored: StoredTokens, chat: ChatFormat, teacher: OpenTeacher | None, *, translates: bool
) -> TokenMatch | TokenDifference:
    """Compare `chat`'s tokenizer and template with those that rows are stored in.

    Equal ids with extra entries on one side (a padded vocabulary) mean the same; with `translates` so do all
    of the teacher's tokens under other numbers. `teacher` is where the stored tokenizer may be found, if the
    hashes alone don't tell. Raises as `load_tokenizer` does.
    """
    same_template = (chat_template_sha256(chat.tokenizer) or "") == stored.chat_template_sha256
    if not stored.tokenizer_sha256:
        return TokenDifference("the rows are text", same_template=False)
    if tokenizer_sha256(chat.tokenizer) == stored.tokenizer_sha256:
        return TokenMatch(same_ids=True, same_template=same_template)
    why = "their hashes differ, and the teacher's tokenizer isn't at hand to compare them"
    if teacher is None:
        return TokenDifference(why, same_template)
    own = load_teacher_tokenizer(teacher)
    present = tokenizer_sha256(own)
    if present != stored.tokenizer_sha256:
        return TokenDifference(why, same_template, present)
    related = relate_tokenizers(own, chat, translates=translates)
    if isinstance(related, TokenMatch):
        return replace(related, same_template=related.translation is None and same_template)
    return TokenDifference(related, same_template, present)


def load_teacher_tokenizer(teacher: OpenTeacher) -> PreTrainedTokenizerBase:
    """The tokenizer of `teacher.open`. Raises as `load_tokenizer` does."""
    model = teacher.model
    return load_tokenizer(model.name, model.revision, model.trust_remote_code, teacher.tokenizer.use_fast)


def relate_tokenizers(
    teacher: PreTrainedTokenizerBase, chat: ChatFormat, *, translates: bool
) -> TokenMatch | str:
    """How tokenizers of different hashes relate, or why they don't; templates are not compared."""
    comparison = compare_tokenizers(teacher, chat.tokenizer)
    if comparison.compatible:
        return TokenMatch(same_ids=True, same_template=False)
    translation = map_vocabulary(teacher, chat.tokenizer)
    if translates and translation.is_complete:
        if teacher.eos_token_id is not None:
            translation = translation.with_pair(int(teacher.eos_token_id), chat.turn_end_id)
        return TokenMatch(same_ids=True, same_template=False, translation=translation)
    return f"{comparison.describe()}; {translation.describe()}"
