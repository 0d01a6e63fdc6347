"""Who the teacher is, and the keys that name its answers.

A request key is the hash of everything that decides an answer: the teacher, the prompt, the sampling, the
seed and the sample's index. The same request always has the same key, in any run and on any machine, so an
answer is never asked for twice; a row's seed and its partition follow from the key alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from raystill.store.records import FORMAT_VERSION, Int32Array

KEY_LENGTH = 32
_PARTITION_DIGITS = 15
_PARTITION_BITS = 4 * _PARTITION_DIGITS
_NOT_THE_TEACHER = {"format_version", "num_logprobs", "logprob_policy", "licence_note"}


class StoreIdentity(BaseModel):
    """Everything that all rows of one store share. Hashes are hex sha256, "" where there is nothing to hash.

    `weights_sha256` covers a local checkpoint's safetensors files; `revision` names a hub checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    teacher: str = Field(min_length=1)
    revision: str = ""
    weights_sha256: str = ""
    engine: str = Field(min_length=1)
    dtype: str = Field(min_length=1)
    tokenizer_sha256: str
    chat_template_sha256: str
    num_logprobs: int = Field(ge=0)
    logprob_policy: str = "natural log, temperature 1, whole vocabulary, top k and tail mass"
    licence_note: str = ""

    @property
    def teacher_id(self) -> str:
        """Twelve hex digits that name what produces the text; how many logprobs are kept is no part of it."""
        facts = self.model_dump(mode="json", exclude=_NOT_THE_TEACHER)
        return hashlib.sha256(_canonical(facts).encode("utf-8")).hexdigest()[:12]


def request_key(
    identity: StoreIdentity,
    prompt: Int32Array | Sequence[int] | str,
    sampling: Mapping[str, Any],
    *,
    seed: int,
    sample_index: int = 0,
) -> str:
    """The 32 hex digits that name one request.

    `prompt` is the rendered prompt: token ids where the engine takes ids, text otherwise. `sampling` holds
    whatever the engine is told about drawing; 1 and 1.0 are the same value. All samples of one request share
    the first half of their keys, hence their partition: they are generated and stored side by side.
    """
    own = _key_of(identity, prompt, sampling, seed, sample_index)
    if sample_index == 0:
        return own
    return _key_of(identity, prompt, sampling, seed, 0)[: KEY_LENGTH // 2] + own[KEY_LENGTH // 2 :]


def _key_of(
    identity: StoreIdentity,
    prompt: Int32Array | Sequence[int] | str,
    sampling: Mapping[str, Any],
    seed: int,
    sample_index: int,
) -> str:
    digest = hashlib.sha256()
    head = {
        "teacher": identity.teacher_id,
        "sampling": {name: _number(value) for name, value in sampling.items()},
        "seed": seed,
        "sample_index": sample_index,
        "prompt": "text" if isinstance(prompt, str) else "ids",
    }
    digest.update(_canonical(head).encode("utf-8") + b"\0")
    if isinstance(prompt, str):
        digest.update(prompt.encode("utf-8", "surrogatepass"))
    else:
        digest.update(np.asarray(prompt, dtype="<i4").tobytes())
    return digest.hexdigest()[:KEY_LENGTH]


def row_seed(key: str) -> int:
    """A seed in [0, 2^31) for the engine, from the request key alone."""
    return int(key[-8:], 16) & 0x7FFF_FFFF


def partition_of(key: str, num_partitions: int) -> int:
    """The partition that holds `key`: partitions are equal ranges of the key's first 60 bits, in order."""
    return int(key[:_PARTITION_DIGITS], 16) * num_partitions >> _PARTITION_BITS


def partition_start(partition: int, num_partitions: int) -> int:
    """The smallest value of a key's first 60 bits that lies in `partition`."""
    return -(-(partition << _PARTITION_BITS) // num_partitions)


def differing_fields(stored: StoreIdentity, wanted: StoreIdentity) -> list[str]:
    """One line per field that differs: `field: stored -> wanted`. The licence note may be reworded."""
    before, after = stored.model_dump(), wanted.model_dump()
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in before
        if name != "licence_note" and before[name] != after[name]
    ]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
