"""New tokens: at the end of the vocabulary, and as likely as any other before they are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raystill.text.chat import ChatFormat
from raystill.train.students.special_tokens import add_special_tokens, new_token_ids, widen_embeddings

NEW = ["<|tool|>", "<|/tool|>"]


def test_new_tokens_come_last_and_known_ones_stay(chat: ChatFormat) -> None:
    wider = add_special_tokens(chat, [*NEW, "<|im_end|>"])
    size = len(chat.tokenizer)
    assert new_token_ids(chat, wider) == [size, size + 1]
    assert len(chat.tokenizer) == size and len(wider.tokenizer) == size + 2
    ids = wider.tokenizer("a<|tool|>b", add_special_tokens=False)["input_ids"]
    assert ids[1] == size and wider.tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert add_special_tokens(wider, NEW) is wider


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 10])
def test_rows_are_the_mean_and_the_rest_is_untouched(decoder: Any, tied: bool, padding: int) -> None:
    known = 90
    model = decoder(vocab_size=known + padding, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    widen_embeddings(model, [known, known + 1], known)
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.shape[0] == output.shape[0] == max(known + padding, known + 2) == model.config.vocab_size
    assert (embedding.data_ptr() == output.data_ptr()) is tied
    assert torch.equal(embedding[:known], before[:known]) and torch.equal(output[:known], head[:known])
    for row in (known, known + 1):
        torch.testing.assert_close(embedding[row], before[:known].mean(0))
        torch.testing.assert_close(output[row], head[:known].mean(0))


def test_a_new_token_takes_little_from_the_others(decoder: Any) -> None:
    model = decoder(tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    ids = torch.arange(10).unsqueeze(0)
    before = model(input_ids=ids).logits.log_softmax(-1)
    widen_embeddings(model, [96], 96)
    after = model(input_ids=ids).logits.log_softmax(-1)
    assert (before - after[..., :96]).abs().max() < 0.02


def test_without_new_tokens_nothing_changes(decoder: Any) -> None:
    model = decoder()
    before = model.get_input_embeddings().weight
    widen_embeddings(model, [], 96)
    assert model.get_input_embeddings().weight is before


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_with_new_tokens_trains_them(world: Any, adapted: bool, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = world.config("base", student={"tie_word_embeddings": tied}, training={"steps": 1})
    world.train(base, "sft")
    described = {
        "base_model_name": str(world.paths(base).model("sft")),
        "init": "base",
        "additional_special_tokens": NEW,
        "tie_word_embeddings": tied,
        **dict.fromkeys(
            ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "model_type")
        ),
    }  # fmt: skip
    lora = {"peft": {"lora": {"r": 4}}} if adapted else {}
    config = world.config("more", student=described, train={"distillation": lora})
    summary = world.train(config)
    paths = world.paths(config)
    start, end = (
        AutoModelForCausalLM.from_pretrained(path)
        for path in (paths.initial_model("distill"), paths.model("distill"))
    )
    tokenizer = AutoTokenizer.from_pretrained(paths.model("distill"))
    size = len(world.chat.tokenizer)
    assert tokenizer.convert_tokens_to_ids(NEW) == [size, size + 1]
    assert end.get_output_embeddings().weight.shape[0] == size + 2
    first, last = start.get_output_embeddings().weight, end.get_output_embeddings().weight
    torch.testing.assert_close(first[size], first[:size].mean(0))
    assert not torch.equal(first[size], last[size])
    assert end.config.tie_word_embeddings is tied
    assert any("2 tokens were added" in note for note in summary["notes"])
