"""Loading tokenizers, telling them apart by bytes, and choosing a pad token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from raystill.errors import ConfigError, DataError, EnvironmentFault, RemoteError
from raystill.text.tokenizer import (
    chat_template_sha256,
    compare_tokenizers,
    ensure_pad_token,
    load_tokenizer,
    token_bytes,
    tokenizer_sha256,
)

Build = Callable[..., PreTrainedTokenizerFast]


def test_hash_survives_saving_padding_and_the_choice_of_a_pad_token(
    build_tokenizer: Build, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    loaded(["a", "bb"], padding=True, truncation=True, max_length=1)
    loaded.pad_token = "<|im_start|>"
    assert tokenizer_sha256(loaded) == tokenizer_sha256(tokenizer)
    assert chat_template_sha256(loaded) == chat_template_sha256(tokenizer) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ("entirely other words, with other merges",)},
        {"special_tokens": ("<|im_start|>", "<pad>", "<|im_end|>")},
        {"special_tokens": ("<pad>", "<|im_start|>", "<|im_end|>", "<|other|>")},
        {"eos_token": "<|im_start|>"},
    ],
)
def test_hash_changes_with_what_decides_ids(build_tokenizer: Build, change: dict[str, object]) -> None:
    assert tokenizer_sha256(build_tokenizer(**change)) != tokenizer_sha256(build_tokenizer())


def test_template_hash_is_separate(build_tokenizer: Build) -> None:
    other = build_tokenizer(chat_template="{{ messages[0].content }}")
    assert tokenizer_sha256(other) == tokenizer_sha256(build_tokenizer())
    assert chat_template_sha256(other) != chat_template_sha256(build_tokenizer())
    assert chat_template_sha256(build_tokenizer(chat_template=None)) is None


def test_token_bytes_spell_what_the_tokens_decode_to(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer()
    meanings = token_bytes(tokenizer)
    text = "hello wörld 世界\n\x7f"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(meanings[index][0] for index in ids) == text.encode("utf-8")
    assert meanings[tokenizer.eos_token_id] == (b"<|im_end|>", True)


def test_equal_and_reordered_vocabularies(build_tokenizer: Build) -> None:
    """I26: the number of ids that differ, with samples."""
    same = compare_tokenizers(build_tokenizer(), build_tokenizer())
    assert same.equal
    assert same.compatible
    swapped = compare_tokenizers(
        build_tokenizer(), build_tokenizer(special_tokens=("<|im_start|>", "<pad>", "<|im_end|>"))
    )
    assert swapped.num_differing == 2
    assert swapped.differing[0] == (0, "'<pad>' (special)", "'<|im_start|>' (special)")
    assert not swapped.compatible
    assert "2 of" in swapped.describe()


def test_padding_of_the_vocabulary_is_compatible_but_not_equal(build_tokenizer: Build) -> None:
    """I27."""
    padded = build_tokenizer()
    padded.add_tokens([f"<|extra_{index}|>" for index in range(5)])
    comparison = compare_tokenizers(build_tokenizer(), padded)
    assert (comparison.num_differing, comparison.only_in_first, comparison.only_in_second) == (0, 0, 5)
    assert comparison.compatible
    assert not comparison.equal
    assert "the second has 5 more" in comparison.describe()


def test_a_token_that_is_special_on_one_side_only_differs(build_tokenizer: Build) -> None:
    special, plain = build_tokenizer(), build_tokenizer()
    special.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    plain.add_tokens(["<|tool|>"])
    assert compare_tokenizers(special, plain).num_differing == 1


def test_pad_is_the_tokenizers_own_where_it_is_safe(build_tokenizer: Build) -> None:
    pad = ensure_pad_token(build_tokenizer())
    assert (pad.id, pad.token, pad.note) == (0, "<pad>", "")


@pytest.mark.parametrize("pad_token", [None, "<|im_end|>"])
def test_missing_or_eos_pad_is_replaced_by_a_safe_special_token(
    build_tokenizer: Build, pad_token: str | None
) -> None:
    """I25."""
    tokenizer = build_tokenizer(pad_token=pad_token)
    pad = ensure_pad_token(tokenizer)
    assert (pad.id, pad.token) == (0, "<pad>")
    assert "padding with '<pad>'" in pad.note
    assert tokenizer.pad_token == pad_token


def test_no_token_that_the_template_or_the_generation_config_uses_becomes_pad(build_tokenizer: Build) -> None:
    """I25."""
    tokenizer = build_tokenizer(
        special_tokens=("<|im_start|>", "<|im_end|>", "<|endoftext|>"), pad_token=None
    )
    assert ensure_pad_token(tokenizer).token == "<|endoftext|>"
    with pytest.raises(ConfigError, match="mask every EOS") as error:
        ensure_pad_token(tokenizer, eos_token_ids=[2])
    assert error.value.exit_code == 2
    assert "add_special_tokens" in str(error.value)


def test_eos_may_pad_only_where_masking_is_by_position(build_tokenizer: Build) -> None:
    """I25."""
    tokenizer = build_tokenizer(special_tokens=("<|im_start|>", "<|im_end|>"), pad_token="<|im_end|>")
    with pytest.raises(ConfigError):
        ensure_pad_token(tokenizer)
    pad = ensure_pad_token(tokenizer, eos_would_be_masked=False)
    assert pad.id == tokenizer.eos_token_id
    assert "masked by position" in pad.note


def _write_config_only(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "qwen2"}')


def _write_broken_json(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{broken")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def _write_nothing(directory: Path) -> None:
    assert not list(directory.iterdir())


@pytest.mark.parametrize(
    ("write", "kind", "message"),
    [
        (_write_nothing, ConfigError, "holds no tokenizer"),
        (_write_config_only, ConfigError, "holds no tokenizer"),
        (_write_broken_json, DataError, "can't be read"),
    ],
)
def test_directories_without_a_usable_tokenizer(
    tmp_path: Path, write: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(kind, match=message) as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "fix:" in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/place", "./nothing-here", "~/no-such-place", "a/b/c", "/nul\0"])
def test_missing_local_directory(name: str) -> None:
    """I10."""
    with pytest.raises(ConfigError, match="is not a directory"):
        load_tokenizer(name)


def test_malformed_hub_id() -> None:
    """I10."""
    with pytest.raises(ConfigError, match="neither a directory nor a hub id") as error:
        load_tokenizer("not a/model id")
    assert error.value.exit_code == 2


def test_hub_id_that_is_not_cached_while_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """I10."""
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with pytest.raises(RemoteError, match="can't be reached") as error:
        load_tokenizer("raystill-nobody/no-such-model")
    assert error.value.exit_code == 5
    assert "spelling" in str(error.value)


def test_hub_without_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError("no network")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(RemoteError, match="can't be reached"):
        load_tokenizer("raystill-nobody/no-such-model")


@pytest.mark.parametrize(
    ("hub_error", "message", "fix"),
    [
        ("RepositoryNotFoundError", "the hub knows no", "spelling"),
        ("GatedRepoError", "is gated", "hf auth login"),
        ("RevisionNotFoundError", "no revision", "revision"),
    ],
)
def test_what_the_hub_says_becomes_a_message_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, hub_error: str, message: str, fix: str
) -> None:
    """I10."""
    from huggingface_hub import HfApi, errors

    kind = getattr(errors, hub_error)
    answer = kind.__new__(kind)

    def refuse(*args: object, **kwargs: object) -> None:
        raise answer

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(RemoteError, match=message) as error:
        load_tokenizer("org/model", revision="abc")
    assert fix in str(error.value)


def test_settings_that_cannot_be_honoured_are_refused() -> None:
    """I12."""
    with pytest.raises(ConfigError, match="use_fast"):
        load_tokenizer("org/model", use_fast=False)
    with pytest.raises(ConfigError, match="run code from the hub"):
        load_tokenizer("org/model", trust_remote_code=True)


def test_a_missing_package_is_an_environment_fault(
    monkeypatch: pytest.MonkeyPatch, tokenizer_dir: Path
) -> None:
    import transformers

    def refuse(*args: object, **kwargs: object) -> None:
        raise ImportError("needs sentencepiece")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(EnvironmentFault, match="sentencepiece"):
        load_tokenizer(str(tokenizer_dir))
