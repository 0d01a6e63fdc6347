"""New weights in the shape of the keys; what doesn't come out even is refused."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.config.models import StudentSection
from raystill.errors import ConfigError
from raystill.text.chat import ChatFormat
from raystill.train.students.fresh import build_fresh, fresh_config

KEYS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def section(**keys: Any) -> StudentSection:
    return StudentSection.model_validate({**KEYS, **keys})


def test_what_is_not_given_has_the_documented_default(chat: ChatFormat) -> None:
    config = fresh_config(section(), chat)
    assert (config.model_type, config.num_key_value_heads, config.max_position_embeddings) == (
        "qwen2", 4, 1024
    )  # fmt: skip
    assert config.rope_parameters["rope_theta"] == 10000.0 and config.tie_word_embeddings
    assert config.vocab_size == len(chat.tokenizer)


def test_heads_may_have_a_width_of_their_own(chat: ChatFormat) -> None:
    model = build_fresh(section(head_dim=16, hidden_size=28, model_type="llama"), chat, "sdpa")
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (64, 28)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"hidden_size": 30}, "doesn't come out even"),
        ({"num_key_value_heads": 3}, "doesn't come out even"),
        ({"head_dim": 7}, "doesn't come out even"),
        ({"hidden_size": None}, "needs hidden_size"),
        ({"vocab_size": 10}, "259 tokens"),
    ],
)
def test_shapes_that_make_no_model_are_refused(chat: ChatFormat, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fresh_config(section(**keys), chat)
