"""Loading tokenizers, and saying exactly when two of them are the same.

A teacher's stored logprobs are indexed by token id, so a student may only learn from them if every id means
the same bytes to both. `compare_tokenizers` answers that; `tokenizer_sha256` identifies a tokenizer in
manifests and in the teacher store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.errors import ConfigError, DataError, EnvironmentFault, RemoteError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_PROBE_SECONDS = 10.0


def is_local_name(name: str) -> bool:
    """Whether a model or tokenizer name means a directory on this machine rather than a hub id."""
    if name.startswith(("/", "./", "../", "~")) or "\\" in name or name.count("/") > 1:
        return True
    return Path(name).is_dir()


def load_tokenizer(
    name_or_path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    use_fast: bool = True,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local directory or from the hub (its cache, where the hub can't be reached).

    Raises ConfigError for a directory that isn't there or holds no tokenizer, for a malformed hub id, for
    remote code without a pinned revision and for `use_fast=False`; RemoteError for an id that the hub doesn't
    know or won't give, and for a hub out of reach; DataError for tokenizer files that can't be read;
    EnvironmentFault for a missing package.
    """
    if not use_fast:
        raise ConfigError(
            "use_fast: false can't be honoured: transformers 5 has only the fast tokenizers",
            where=f"tokenizer {name_or_path}",
            fix="remove use_fast, or set it to true",
        )
    if is_local_name(name_or_path):
        return _load_local(name_or_path, trust_remote_code)
    if trust_remote_code and revision is None:
        raise ConfigError(
            f"{name_or_path} would run code from the hub at whatever state it is in",
            where="trust_remote_code",
            fix="set `revision` to a commit that you have read",
        )
    return _load_from_hub(name_or_path, revision, trust_remote_code)


def _load_local(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    directory = Path(name).expanduser()
    if "\0" in name or not directory.is_dir():
        raise ConfigError(
            f"{name!r} is not a directory",
            where="tokenizer",
            fix="give a directory that save_pretrained wrote, or a hub id such as org/name",
        )
    if not any((directory / file).exists() for file in _VOCABULARY_FILES):
        raise ConfigError(
            "the directory holds no tokenizer",
            where=str(directory),
            fix=f"put one of {', '.join(_VOCABULARY_FILES)} there, for example with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    return _from_pretrained(str(directory), trust_remote_code=trust_remote_code)


def _load_from_hub(name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    reachable = _probe_hub(name, revision)
    try:
        return _from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, local_files_only=not reachable
        )
    except ConfigError:
        if reachable:
            raise
        raise RemoteError(
            f"{name} is not in the local cache, and the hub can't be reached",
            where=f"tokenizer {name}",
            fix="check the spelling and the network, or give the path of a local copy",
        ) from None


def _probe_hub(name: str, revision: str | None) -> bool:
    """Whether the hub answers for this model: one quick question instead of minutes of retries per file."""
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    where = f"tokenizer {name}"
    # The hub client has changed its HTTP library between releases; that library's base error is always the
    # first parent of the client's own error.
    transport_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        HfApi().model_info(name, revision=revision, timeout=_PROBE_SECONDS)
    except errors.HFValidationError as error:
        raise ConfigError(
            f"{name!r} is neither a directory nor a hub id", where, fix="hub ids look like org/name"
        ) from error
    except errors.GatedRepoError as error:
        raise RemoteError(
            f"{name} is gated", where, fix="accept its terms on the hub, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RemoteError(f"{name} has no revision {revision!r}", where, fix="check the revision") from error
    except errors.RepositoryNotFoundError as error:
        raise RemoteError(
            f"the hub knows no {name}", where, fix="check the spelling; if it is private, `hf auth login`"
        ) from error
    except (transport_error, OSError):
        return False
    return True


def _from_pretrained(name: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except ImportError as error:
        raise EnvironmentFault(
            f"this tokenizer needs a package that is not installed: {error}",
            where=name,
            fix="install the package that the message names",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"no tokenizer could be loaded: {_first_line(error)}",
            where=name,
            fix="check the name; a tokenizer needs tokenizer.json and tokenizer_config.json",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the tokenizer's files can't be read: {_first_line(error)}",
            where=name,
            fix="copy or download the tokenizer again",
        ) from error
    if len(tokenizer.get_vocab()) - len(tokenizer.get_added_vocab()) <= 0:
        raise ConfigError(
            "the tokenizer has no vocabulary",
            where=name,
            fix="its tokenizer.json is missing; download it again",
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex sha256 of what decides token ids: vocabulary, merges, added tokens, text rules, EOS, BOS.

    Left out: padding and truncation state, the pad token and the chat template (`chat_template_sha256`), so
    choosing a pad token or saving and loading never changes it.
    """
    description = {"kind": "backend", "tokenizer": _backend_description(tokenizer)}
    if description["tokenizer"] is None:
        added = {token: int(index) for token, index in tokenizer.get_added_vocab().items()}
        description = {
            "kind": type(tokenizer).__name__,
            "tokenizer": {
                "vocab": tokenizer.get_vocab(),
                "added": added,
                "files": _vocabulary_hashes(tokenizer),
            },
        }
    description["eos"], description["bos"] = tokenizer.eos_token, tokenizer.bos_token
    return _sha256_json(description)


def chat_template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hex sha256 of the chat template, or None where the tokenizer has none."""
    template = tokenizer.chat_template
    return None if not template else _sha256_json(template)


def _backend_description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    description: dict[str, Any] = json.loads(backend.to_str())
    for runtime_state in ("padding", "truncation", "version"):
        description.pop(runtime_state, None)
    return description


def _vocabulary_hashes(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    path = getattr(tokenizer, "vocab_file", None)
    if not path or not Path(path).is_file():
        return {}
    return {Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class TokenizerComparison:
    """How two tokenizers' ids relate.

    `differing` holds up to ten (id, bytes in the first, bytes in the second) of the `num_differing` ids that
    both have but that mean different bytes, or are special in one only. `only_in_first` and `only_in_second`
    count ids that one has and the other doesn't. `same_segmentation`: equal texts also become equal ids.
    """

    num_shared: int
    num_differing: int
    differing: tuple[tuple[int, str, str], ...]
    only_in_first: int
    only_in_second: int
    same_segmentation: bool

    @property
    def equal(self) -> bool:
        """The same tokenizer in every respect that decides ids."""
        return self.same_segmentation and self.compatible and not (self.only_in_first or self.only_in_second)

    @property
    def compatible(self) -> bool:
        """Every shared id means the same; at most one side has extra ids (padding of the vocabulary)."""
        return (
            self.num_shared > 0
            and not self.num_differing
            and not (self.only_in_first and self.only_in_second)
        )

    def describe(self) -> str:
        """One line for a message."""
        if self.equal:
            return f"equal ({self.num_shared} ids)"
        if self.compatible:
            extra = self.only_in_first or self.only_in_second
            side = "first" if self.only_in_first else "second"
            return f"the same {self.num_shared} ids; the {side} has {extra} more"
        examples = ", ".join(f"{index}: {first} / {second}" for index, first, second in self.differing[:5])
        return (
            f"{self.num_differing} of {self.num_shared} shared ids differ ({examples}); "
            f"{self.only_in_first} ids only in the first, {self.only_in_second} only in the second"
        )


def compare_tokenizers(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, max_examples: int = 10
) -> TokenizerComparison:
    """Compare what every token id means, as bytes; sizes alone prove nothing."""
    first_bytes, second_bytes = token_bytes(first), token_bytes(second)
    shared = first_bytes.keys() & second_bytes.keys()
    differing = sorted(index for index in shared if first_bytes[index] != second_bytes[index])
    examples = tuple(
        (index, show_token(*first_bytes[index]), show_token(*second_bytes[index]))
        for index in differing[:max_examples]
    )
    return TokenizerComparison(
        num_shared=len(shared),
        num_differing=len(differing),
        differing=examples,
        only_in_first=len(first_bytes) - len(shared),
        only_in_second=len(second_bytes) - len(shared),
        same_segmentation=tokenizer_sha256(first) == tokenizer_sha256(second),
    )


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, tuple[bytes, bool]]:
    """For every id of the vocabulary: the bytes it stands for, and whether it is a special token.

    Byte-level vocabularies spell a byte as one printable character (the table of GPT-2's encoder);
    SentencePiece ones write a space as U+2581 and rare bytes as <0xNN>.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    added = {int(index): token for index, token in tokenizer.added_tokens_decoder.items()}
    description = _backend_description(tokenizer)
    byte_level = description is not None and '"ByteLevel"' in json.dumps(
        [description.get("decoder"), description.get("pre_tokenizer")]
    )
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    meanings: dict[int, tuple[bytes, bool]] = {}
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            meanings[index] = (
                added[index].content.encode("utf-8", "surrogatepass"),
                bool(added[index].special),
            )
        elif byte_level and all(character in byte_of for character in token):
            meanings[index] = (bytes(byte_of[character] for character in token), False)
        else:
            meanings[index] = (_sentencepiece_bytes(token), False)
    return meanings


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "surrogatepass")


def show_token(content: bytes, special: bool) -> str:
    """A token's bytes as text for a message."""
    return repr(content.decode("utf-8", "backslashreplace")) + (" (special)" if special else "")


@dataclass(frozen=True)
class PadToken:
    """The id that fills a batch, and a note where it isn't simply the tokenizer's own pad token."""

    id: int
    token: str
    note: str = ""


def ensure_pad_token(
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: Collection[int] = (),
    *,
    eos_would_be_masked: bool = True,
) -> PadToken:
    """Choose a pad id that is never an EOS; the tokenizer itself is left as it is.

    The tokenizer's own pad token is taken where it isn't an EOS; else an unused special token: one that says
    `pad`, then the unknown token, then any special token that the chat template doesn't use. Where only an
    EOS is left, it is taken if the caller masks by position (`eos_would_be_masked=False`), and otherwise
    refused, because masking by id would also hide the EOS that the student must learn. Raises ConfigError.
    """
    forbidden = {int(index) for index in eos_token_ids}
    if tokenizer.eos_token_id is not None:
        forbidden.add(int(tokenizer.eos_token_id))
    own = tokenizer.pad_token_id
    if own is not None and int(own) not in forbidden:
        return PadToken(int(own), str(tokenizer.pad_token))
    reason = "has no pad token" if own is None else f"pads with its EOS {tokenizer.pad_token!r}"
    for token, index in _pad_candidates(tokenizer):
        if index not in forbidden:
            return PadToken(index, token, note=f"the tokenizer {reason}; padding with {token!r}")
    if not eos_would_be_masked and forbidden:
        index = min(forbidden) if own is None else int(own)
        token = str(tokenizer.convert_ids_to_tokens(index))
        return PadToken(
            index, token, note=f"the tokenizer {reason}; padding with {token!r}, masked by position"
        )
    raise ConfigError(
        f"the tokenizer {reason} and has no other special token: masking the padding would mask every EOS, "
        "and the student would never learn to stop",
        where="tokenizer",
        fix='add one and save it: tokenizer.add_special_tokens({"pad_token": "<pad>"})',
    )


def _pad_candidates(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    template = tokenizer.chat_template
    template_text = json.dumps(template) if template else ""
    special = sorted(
        (int(index), token.content)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and json.dumps(token.content)[1:-1] not in template_text
    )
    by_name = [(content, index) for index, content in special if "pad" in content.lower()]
    unknown = [(content, index) for index, content in special if content == tokenizer.unk_token]
    others = [(content, index) for index, content in special if content != tokenizer.bos_token]
    return [*by_name, *unknown, *others]
