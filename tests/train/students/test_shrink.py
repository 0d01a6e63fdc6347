"""A base cut to the student's keys: the base itself where nothing is cut, better than nothing where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from raystill.config.models import StudentSection
from raystill.errors import ConfigError
from raystill.train.students.shrink import (
    Shape,
    base_shape,
    build_shrunk,
    channel_importance,
    choose_layers,
    wanted_shape,
)

SAME = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCAB = 64


def student(**keys: Any) -> StudentSection:
    return StudentSection.model_validate({**SAME, **keys})


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_keys_that_equal_the_bases_give_the_base(decoder: Any, family: str, tied: bool) -> None:
    base = decoder(family, tie_word_embeddings=tied)
    same = build_shrunk(base, student(num_key_value_heads=2), "sdpa")
    for name, tensor in base.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(logits(same, ids), logits(base, ids))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_size_can_shrink(decoder: Any, family: str, tied: bool) -> None:
    keys = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = decoder(family, tie_word_embeddings=tied)
    small = build_shrunk(base, student(**keys, head_dim=8, max_position_embeddings=48), "sdpa")
    config = small.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (24, 32, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 8)
    assert config.vocab_size == base.config.vocab_size and config.max_position_embeddings == 48
    assert config.tie_word_embeddings is tied
    assert torch.isfinite(logits(small, torch.arange(20).unsqueeze(0))).all()
    assert all(any(torch.isin(p, b).all() for b in base.parameters()) for p in small.parameters())


def test_what_never_acts_is_what_goes(decoder: Any) -> None:
    """Dead neurons, dead heads and dead channels are cut first, and cutting them changes nothing."""
    base = decoder(num_key_value_heads=4)
    dead_channels, dead_neurons, dead_heads = [3, 8, 17, 30], [0, 5, 11], (1, 3)
    with torch.no_grad():
        base.model.embed_tokens.weight[:, dead_channels] = 0
        base.lm_head.weight[:, dead_channels] = 0
        for layer in base.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, name).weight[:, dead_channels] = 0
            for name in ("gate_proj", "up_proj"):
                getattr(layer.mlp, name).weight[:, dead_channels] = 0
            layer.self_attn.o_proj.weight[dead_channels] = 0
            layer.mlp.down_proj.weight[dead_channels] = 0
            layer.mlp.down_proj.weight[:, dead_neurons] = 0
            for head in dead_heads:
                layer.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    ids = torch.arange(20).unsqueeze(0)
    narrow = build_shrunk(
        base, student(intermediate_size=45, num_attention_heads=2, num_key_value_heads=2, head_dim=8), "sdpa"
    )
    torch.testing.assert_close(logits(narrow, ids), logits(base, ids))
    thin = build_shrunk(base, student(hidden_size=28, num_key_value_heads=4, head_dim=8), "sdpa")
    kept = channel_importance(dict(base.state_dict()), [0, 1, 2, 3]) > 0
    assert kept.sum() == 28 and not kept[dead_channels].any()
    assert torch.equal(thin.model.embed_tokens.weight, base.model.embed_tokens.weight[:, kept])


@pytest.mark.parametrize(
    ("number", "wanted", "expected"),
    [(28, 4, [0, 9, 18, 27]), (4, 4, [0, 1, 2, 3]), (12, 2, [0, 11]), (6, 1, [0]), (5, 3, [0, 2, 4])],
)
def test_layers_are_evenly_spaced_with_both_ends(number: int, wanted: int, expected: list[int]) -> None:
    assert choose_layers(number, wanted) == expected


def test_the_layers_that_stay_are_the_bases(decoder: Any) -> None:
    base = decoder()
    small = build_shrunk(base, student(num_hidden_layers=2), "sdpa")
    for place, layer in enumerate((0, 3)):
        expected = base.model.layers[layer].state_dict()
        for name, tensor in small.model.layers[place].state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_half_heads_keep_the_frequencies_of_the_first_half() -> None:
    """8 heads of 8 from 4 of 16: the sum over both parts is the whole dot product."""
    own = Shape(layers=28, channels=1536, neurons=8960, heads=12, groups=2, head_dim=128)
    keys = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 24}
    section = StudentSection.model_validate({**keys, "num_attention_heads": 20})
    config = AutoConfig.for_model("qwen2", vocab_size=100, tie_word_embeddings=True)
    shape = wanted_shape(own, section, config)
    assert (shape.heads, shape.groups, shape.head_dim) == (20, 4, 64)


def test_half_heads_are_half_of_a_heads_rotary_pairs(decoder: Any) -> None:
    base = decoder(num_key_value_heads=4)
    small = build_shrunk(base, student(num_attention_heads=8, num_key_value_heads=8, head_dim=4), "sdpa")
    whole = base.model.layers[0].self_attn.q_proj.weight.reshape(4, 8, 32)
    parts = small.model.layers[0].self_attn.q_proj.weight.reshape(4, 2, 4, 32)
    assert torch.allclose(parts[:, 0], whole[:, [0, 2, 4, 6]] * 2**0.5)
    assert torch.allclose(parts[:, 1], whole[:, [1, 3, 5, 7]] * 2**0.5)
    base_frequencies, frequencies = base.model.rotary_emb.inv_freq, small.model.rotary_emb.inv_freq
    assert torch.allclose(frequencies, base_frequencies[::2])
    values = small.model.layers[0].self_attn.v_proj.weight.reshape(4, 2, 4, 32)
    assert torch.equal(values[:, 0], base.model.layers[0].self_attn.v_proj.weight.reshape(4, 8, 32)[:, ::2])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"hidden_size": 64, "head_dim": 8}, "hidden_size: 64 is more than the base's 32"),
        ({"hidden_size": 30, "head_dim": 8}, "hidden_size: 30 isn't a multiple of num_attention_heads"),
        ({"num_hidden_layers": 5}, "num_hidden_layers: 5 is more than the base's 4"),
        ({"intermediate_size": 49}, "intermediate_size: 49 is more"),
        ({"head_dim": 6}, "head_dim: heads of 6 .* aren't whole parts of the base's heads of 8"),
        ({"head_dim": 16}, "head_dim: heads of 16"),
        ({"num_attention_heads": 8, "head_dim": 8}, "can't be chosen from 4 over 2"),
        ({"num_key_value_heads": 1, "head_dim": 8}, "4 query heads over 1 key/value heads"),
        ({"vocab_size": 50}, "vocab_size: 50, and the base has 96"),
        ({"model_type": "qwen2"}, "model_type: qwen2, and the base has llama"),
        ({"rope_theta": 5.0}, "rope_theta: 5.0, and the base has 10000"),
        ({"tie_word_embeddings": True}, "the base's two embeddings differ"),
        ({"max_position_embeddings": 100}, "the base has learnt 64 positions"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(
    decoder: Any, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        build_shrunk(decoder(), student(**keys), "sdpa")
    assert f"student.{next(iter(keys))}" in str(caught.value) or "num_attention_heads" in str(caught.value)


def test_a_family_with_other_parts_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    with pytest.raises(ConfigError, match="gpt2 model can't be shrunk"):
        base_shape(AutoModelForCausalLM.from_config(config))


class Language:
    """Sequences of a sparse Markov chain: something that a tiny model learns in seconds."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits_VV = 3.0 * torch.randn(VOCAB, VOCAB, generator=generator)
        self.next_VV = logits_VV.softmax(-1)
        self.generator = generator

    def sample(self, rows: int, length: int = 24) -> Tensor:
        ids = torch.randint(VOCAB, (rows, 1), generator=self.generator)
        while ids.shape[1] < length:
            chosen = torch.multinomial(self.next_VV[ids[:, -1]], 1, generator=self.generator)
            ids = torch.cat([ids, chosen], 1)
        return ids


def train(model: Any, language: Language, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        ids = language.sample(16)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def held_out_loss(model: Any, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


def test_a_shrunk_model_is_ahead_of_a_fresh_one(decoder: Any) -> None:
    language = Language()
    held_out = language.sample(64)
    base = decoder(vocab_size=VOCAB, hidden_size=48, intermediate_size=96, head_dim=12)
    train(base, language, 100)
    keys = {"hidden_size": 36, "intermediate_size": 72, "num_hidden_layers": 3}
    small = build_shrunk(base, student(**keys, head_dim=12, num_attention_heads=2), "sdpa")
    torch.manual_seed(1)
    fresh = AutoModelForCausalLM.from_config(small.config, dtype=torch.float32)
    before = {name: held_out_loss(m, held_out) for name, m in (("shrunk", small), ("fresh", fresh))}
    for model in (small, fresh):
        train(model, language, 25)
    after = {name: held_out_loss(m, held_out) for name, m in (("shrunk", small), ("fresh", fresh))}
    assert before["shrunk"] < before["fresh"], before
    assert after["shrunk"] < after["fresh"] - 0.1, (before, after, held_out_loss(base, held_out))
