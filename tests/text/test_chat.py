"""The one renderer: prompts, training examples and what is wrong with a template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raystill.errors import ConfigError, DataError
from raystill.text.chat import ChatFormat, generation_eos_token_ids, load_chat_format
from raystill.text.tokenizer import load_tokenizer

Build = Callable[..., PreTrainedTokenizerFast]

USER = [{"role": "user", "content": "hello world"}]
BOS = "<|im_start|>"
PLAIN_TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def chat(tokenizer_dir: Path) -> ChatFormat:
    return load_chat_format(str(tokenizer_dir))


def test_prompt_ids_are_the_template_and_nothing_else(chat: ChatFormat) -> None:
    ids = chat.render_prompt_ids(USER)
    text = "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(ids, skip_special_tokens=False) == text
    assert ids == chat.tokenizer.apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    assert chat.decode(chat.render_prompt_ids(USER, add_generation_prompt=False), False) == (
        "<|im_start|>user\nhello world<|im_end|>\n"
    )


def test_bos_of_the_template_is_not_doubled_by_the_tokenizer(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer(
        special_tokens=("<pad>", "<s>", "<|im_start|>", "<|im_end|>"),
        bos_token="<s>",
        chat_template="{{ bos_token }}" + build_tokenizer().chat_template,
    )
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    ids = ChatFormat(tokenizer).render_prompt_ids(USER)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ChatFormat(tokenizer).count_tokens([ChatFormat(tokenizer).render_text(USER)]) == [len(ids)]
    assert ChatFormat(tokenizer).template_problems() == []


@settings(deadline=None)
@given(completion=st.text(max_size=60))
def test_training_example_extends_the_prompt_and_learns_only_the_completion_and_eos(
    chat: ChatFormat, completion: str
) -> None:
    prompt_ids = chat.render_prompt_ids(USER)
    input_ids, loss_mask = chat.training_example(USER, completion)
    assert input_ids[: len(prompt_ids)] == prompt_ids
    assert loss_mask == [0] * len(prompt_ids) + [1] * (len(input_ids) - len(prompt_ids))
    learnt = input_ids[len(prompt_ids) :]
    assert learnt[-1] == chat.turn_end_id
    assert chat.turn_end_id not in learnt[:-1]
    assert chat.decode(learnt) == completion


def test_a_completion_that_spells_the_eos_does_not_end_early(chat: ChatFormat) -> None:
    input_ids, _ = chat.training_example(USER, "say <|im_end|> twice")
    prompt_length = len(chat.render_prompt_ids(USER))
    assert input_ids[prompt_length:].count(chat.turn_end_id) == 1


def test_prompts_are_unchanged_by_completions_encoded_in_between(chat: ChatFormat) -> None:
    before = chat.render_prompt_ids(USER)
    chat.encode_completion("<|im_end|>")
    assert chat.render_prompt_ids(USER) == before


def test_eos_ids_come_from_tokenizer_and_generation_config(build_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(
        special_tokens=("<pad>", "<|im_start|>", "<|im_end|>", "<eos>"), eos_token="<eos>"
    )
    tokenizer.save_pretrained(str(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    chat = load_chat_format(str(tmp_path))
    assert chat.eos_token_ids == (3, 2)
    assert chat.turn_end_id == 2  # the template ends turns with <|im_end|>, not with the tokenizer's own EOS


@pytest.mark.parametrize(
    ("text", "ids"), [("{}", ()), ('{"eos_token_id": 7}', (7,)), ("[]", None), ("{", None)]
)
def test_generation_config(tmp_path: Path, text: str, ids: tuple[int, ...] | None) -> None:
    assert generation_eos_token_ids(str(tmp_path)) == ()
    (tmp_path / "generation_config.json").write_text(text)
    if ids is None:
        with pytest.raises(DataError, match="generation_config"):
            generation_eos_token_ids(str(tmp_path))
    else:
        assert generation_eos_token_ids(str(tmp_path)) == ids


def test_no_chat_template(build_tokenizer: Build) -> None:
    """I23."""
    with pytest.raises(ConfigError, match="no chat template") as error:
        ChatFormat(build_tokenizer(chat_template=None))
    assert error.value.exit_code == 2
    assert "chat_template.jinja" in str(error.value)


def test_template_that_doubles_bos_is_shown_in_tokens(build_tokenizer: Build) -> None:
    """I24."""
    tokenizer = build_tokenizer(
        special_tokens=("<pad>", "<s>", "<|im_start|>", "<|im_end|>"),
        bos_token="<s>",
        chat_template="{{ bos_token }}<s>" + build_tokenizer().chat_template,
    )
    chat = ChatFormat(tokenizer)
    with pytest.raises(ConfigError, match="writes BOS twice: <s> <s> <|im_start|>".replace("|", r"\|")):
        chat.validate()


def test_template_without_eos_after_the_assistant_is_shown_in_tokens(build_tokenizer: Build) -> None:
    """I24."""
    chat = ChatFormat(build_tokenizer(chat_template=PLAIN_TURNS))
    (problem,) = chat.template_problems()
    assert "ends an assistant turn with Ċ, not with an EOS (<|im_end|>)" in problem
    with pytest.raises(ConfigError, match="generation_config"):
        chat.validate()


def test_wrong_eos_of_the_tokenizer_is_found(build_tokenizer: Build) -> None:
    """I24."""
    tokenizer = build_tokenizer(
        special_tokens=("<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"), eos_token="<|endoftext|>"
    )
    assert (
        "with <|im_end|> Ċ, not with an EOS (<|endoftext|>)" in ChatFormat(tokenizer).template_problems()[0]
    )
    assert ChatFormat(tokenizer, extra_eos_token_ids=(2,)).template_problems() == []


def test_no_eos_at_all(build_tokenizer: Build) -> None:
    """I24."""
    chat = ChatFormat(build_tokenizer(eos_token=None))
    with pytest.raises(ConfigError, match="no EOS token"):
        chat.training_example(USER, "x")


def test_messages_that_the_template_refuses(build_tokenizer: Build) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    chat = ChatFormat(build_tokenizer(chat_template=refusing + build_tokenizer().chat_template))
    assert chat.render_prompt_ids(USER)
    with pytest.raises(DataError, match=r"roles: system, user.*no system turn"):
        chat.render_prompt_ids([{"role": "system", "content": "s"}, *USER])


def test_templates_run_in_a_sandbox(build_tokenizer: Build) -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="refuses"):
        ChatFormat(build_tokenizer(chat_template=attack)).render_text(USER)


def test_counts_of_a_batch_equal_single_renderings(chat: ChatFormat) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("a", "hello world " * 50, "世界 🎉")]
    texts = [chat.render_text(messages) for messages in conversations]
    assert chat.count_tokens(texts) == [len(chat.render_prompt_ids(messages)) for messages in conversations]
    assert chat.count_tokens([]) == []


def test_decoding_keeps_or_drops_special_tokens(chat: ChatFormat) -> None:
    ids = [*chat.encode("hello"), chat.turn_end_id]
    assert chat.decode(ids) == "hello"
    assert chat.decode(ids, skip_special_tokens=False) == "hello<|im_end|>"


def test_saved_and_loaded_format_renders_the_same(chat: ChatFormat, tmp_path: Path) -> None:
    chat.tokenizer.save_pretrained(str(tmp_path))
    again = ChatFormat(load_tokenizer(str(tmp_path)))
    assert again.render_prompt_ids(USER) == chat.render_prompt_ids(USER)
