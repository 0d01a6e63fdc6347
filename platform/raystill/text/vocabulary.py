"""From one tokenizer's ids to another's, by the bytes that they stand for.

A student may have every token of its teacher under other numbers, beside tokens of its own: then what the
teacher said, and how sure it was of each alternative, can be said in the student's numbers. Whether two
vocabularies merely pad differently is `tokenizer.compare_tokenizers`; this is for the rest.

Shape letter: V ids of the first tokenizer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raystill.text.tokenizer import show_token, token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Int32Array = npt.NDArray[np.int32]

# No vocabulary has this id: what it stands for is missing.
MISSING = np.iinfo(np.int32).max


@dataclass(frozen=True)
class VocabularyMap:
    """`ids_V[i]` is the second tokenizer's id of the first one's token i, or MISSING.

    `num_missing` counts ordinary tokens of the first that the second lacks, and `examples` shows up to five
    as (id, text); special tokens that it lacks are counted apart: a teacher's own control tokens rarely occur
    in what it says.
    """

    ids_V: Int32Array
    num_missing: int
    num_missing_special: int
    examples: tuple[tuple[int, str], ...]

    @property
    def is_complete(self) -> bool:
        """Every ordinary token has a counterpart: the second vocabulary is a superset of the first."""
        return self.num_missing == 0 and bool((self.ids_V != MISSING).any())

    def translate(self, ids: npt.NDArray[np.integer]) -> Int32Array:
        """`ids` of any shape in the second tokenizer's numbers, MISSING where there is none."""
        known = ids < len(self.ids_V)
        translated = self.ids_V[np.where(known, ids, 0)]
        return np.where(known, translated, MISSING).astype(np.int32)

    def with_pair(self, first: int, second: int) -> VocabularyMap:
        """This map with one more pair, as for the tokens that end a turn; a pair that is known stays."""
        if self.ids_V[first] != MISSING:
            return self
        ids_V = self.ids_V.copy()
        ids_V[first] = second
        return VocabularyMap(ids_V, self.num_missing, self.num_missing_special, self.examples)

    def describe(self) -> str:
        """One line for a message."""
        if self.is_complete:
            return f"all {int((self.ids_V != MISSING).sum())} tokens have a counterpart"
        shown = ", ".join(f"{index}: {text}" for index, text in self.examples)
        return f"{self.num_missing} tokens have no counterpart, such as {shown}"

    def __str__(self) -> str:
        """A fingerprint: equal maps, equal text."""
        return f"map:{hashlib.sha256(self.ids_V.tobytes()).hexdigest()}"


def map_vocabulary(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, max_examples: int = 5
) -> VocabularyMap:
    """Where each token of `first` is in `second`. A token keeps its number where that means the same to both;
    of several ids with equal bytes the n-th of the first becomes the n-th of the second."""
    first_bytes, second_bytes = token_bytes(first), token_bytes(second)
    places: dict[tuple[bytes, bool], list[int]] = defaultdict(list)
    for index in sorted(second_bytes):
        places[second_bytes[index]].append(index)
    ids_V = np.full(max(first_bytes, default=-1) + 1, MISSING, dtype=np.int32)
    seen: dict[tuple[bytes, bool], int] = defaultdict(int)
    missing: list[int] = []
    for index in sorted(first_bytes):
        meaning = first_bytes[index]
        found = places.get(meaning, [])
        if not found:
            missing.append(index)
            continue
        same = second_bytes.get(index) == meaning
        ids_V[index] = index if same else found[min(seen[meaning], len(found) - 1)]
        seen[meaning] += 1
    ordinary = [index for index in missing if not first_bytes[index][1]]
    return VocabularyMap(
        ids_V=ids_V,
        num_missing=len(ordinary),
        num_missing_special=len(missing) - len(ordinary),
        examples=tuple((index, show_token(*first_bytes[index])) for index in ordinary[:max_examples]),
    )
