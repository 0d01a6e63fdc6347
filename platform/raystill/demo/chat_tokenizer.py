"""Small byte-level BPE tokenizers with ChatML turns, for the models that are made here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_chat_tokenizer(
    texts: Iterable[str], vocab_size: int, *, merge_within: str | None = None
) -> Qwen2Tokenizer:
    """A tokenizer of at most `vocab_size` tokens learned from `texts`; its pad token is not its EOS.

    It is a `Qwen2Tokenizer` because transformers builds that class for every model of type qwen2,
    whatever the files say, and with it Qwen2's own rules for splitting text. While merges are learned,
    text is split at the matches of the pattern `merge_within` besides.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    splitting = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    if merge_within is not None:
        at_matches = pre_tokenizers.Split(Regex(merge_within), "isolated")
        splitting = pre_tokenizers.Sequence([at_matches, splitting])
    bpe.pre_tokenizer = splitting
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token=TURN_END,
        pad_token=PAD,
        unk_token=None,
        extra_special_tokens=[TURN_START],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
