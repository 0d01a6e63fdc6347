"""A student that is cut from its base: fewer layers, channels, neurons and heads, all weights the base's own.

What stays is chosen by the weights alone, so no data is needed and equal inputs give equal students:

- layers: evenly spaced, the first and the last always among them;
- channels of the residual stream: those whose rows and columns have the largest squared norm, summed over all
  matrices that read or write the stream, each matrix scaled to norm 1 first so that none outvotes the others
  (reading matrices with the norm's weight in front of them);
- feed-forward neurons, per layer: by the product of the norms of their gate row, up row and down column;
- attention heads, per layer: first key/value heads by |K| |V| times the sum of |Q| |O| over their query
  heads, then the query heads with the largest |Q| |O| within each that stays.

Everything that stays keeps its order. Heads narrower than the base's are parts of its heads: with half the
width each base head gives two, of every second rotary pair, so that the first keeps its frequencies exactly;
queries are scaled by the root of the number of parts, for each part sees only its share of the dot product.

Shape letters: D channels, I neurons, E numbers per head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raystill.config.models import StudentSection
from raystill.config.student_init import resolve_head_dim
from raystill.errors import ConfigError
from raystill.train.students.base import limit_context, rotary_base

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_WRITES = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder: layers, channels, neurons, query heads, key/value heads, width of a head."""

    layers: int
    channels: int
    neurons: int
    heads: int
    groups: int
    head_dim: int


def build_shrunk(base: Any, student: StudentSection, attention: str) -> Any:
    """`base` cut to the student's keys, in float32. Raises ConfigError with the reason where it can't."""
    from transformers import AutoModelForCausalLM

    own = base_shape(base)
    wanted = wanted_shape(own, student, base.config)
    config = _cut_config(base.config, wanted, student)
    weights = shrink_weights(dict(base.state_dict()), own, wanted)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    if not config.tie_word_embeddings and "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    return model


def shrunk_config(config: Any, student: StudentSection) -> Any:
    """A base's transformers config cut to the student's keys. Raises as `build_shrunk`."""
    return _cut_config(config, wanted_shape(_shape_of(config), student, config), student)


def base_shape(base: Any) -> Shape:
    """The sizes of a loaded model. Raises ConfigError for a family that can't be cut."""
    return _shape_of(base.config)


def _shape_of(config: Any) -> Shape:
    if config.model_type not in _FAMILIES:
        raise ConfigError(
            f"a {config.model_type} model can't be shrunk: which of its weights belong together isn't known",
            where="student.base_model_name",
            fix=f"use a base of one of these families: {', '.join(_FAMILIES)}; or student.init: base",
        )
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        channels=config.hidden_size,
        neurons=config.intermediate_size,
        heads=heads,
        groups=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def wanted_shape(own: Shape, student: StudentSection, config: Any) -> Shape:
    """The student's sizes. Raises ConfigError naming everything that a base of shape `own` can't give."""
    head_dim = resolve_head_dim(student)
    reasons: dict[str, str] = {}
    limits = {"num_hidden_layers": own.layers, "hidden_size": own.channels, "intermediate_size": own.neurons}
    for key, limit in limits.items():
        if getattr(student, key) > limit:
            reasons[key] = f"{getattr(student, key)} is more than the base's {limit}"
    if (student.hidden_size or 0) % (student.num_attention_heads or 1):
        reasons["hidden_size"] = (
            f"{student.hidden_size} isn't a multiple of num_attention_heads, {student.num_attention_heads}"
        )
    parts = own.head_dim // max(head_dim, 1)
    if head_dim < 2 or own.head_dim % head_dim or head_dim % 2:
        reasons["head_dim"] = (
            f"heads of {head_dim} (hidden_size / num_attention_heads where head_dim isn't set) aren't whole "
            f"parts of the base's heads of {own.head_dim}"
        )
    elif parts > 1 and config.model_type == "qwen3":
        reasons["head_dim"] = f"a qwen3 model normalises heads of {own.head_dim} as a whole"
    groups = student.num_key_value_heads or _choose_groups(own, student.num_attention_heads or 1, parts)
    if not reasons and not _heads_fit(own, student.num_attention_heads or 1, groups or 0, parts):
        reasons["num_attention_heads"] = (
            f"{student.num_attention_heads} query heads over {groups or 'any number of'} key/value heads "
            f"can't be chosen from {own.heads * parts} over {own.groups * parts}"
        )
    for key, value in _fixed(config).items():
        if getattr(student, key) not in (None, value):
            reasons[key] = f"{getattr(student, key)}, and the base has {value}"
    if student.tie_word_embeddings and not config.tie_word_embeddings:
        reasons["tie_word_embeddings"] = "the base's two embeddings differ, so they can't be shared"
    if reasons:
        raise ConfigError(
            "the base can't be shrunk to these keys: "
            + "; ".join(f"{key}: {text}" for key, text in reasons.items()),
            where=", ".join(f"student.{key}" for key in reasons),
            fix="change them, or set student.init: fresh (without base_model_name) for new weights",
        )
    assert student.num_hidden_layers and student.hidden_size and student.intermediate_size and groups
    return Shape(
        layers=student.num_hidden_layers,
        channels=student.hidden_size,
        neurons=student.intermediate_size,
        heads=student.num_attention_heads or 1,
        groups=groups,
        head_dim=head_dim,
    )


def choose_layers(number: int, wanted: int) -> list[int]:
    """`wanted` of `number` layers, evenly spaced, with the first and (from two on) the last."""
    if wanted == 1:
        return [0]
    return [round(place * (number - 1) / (wanted - 1)) for place in range(wanted)]


def shrink_weights(state: dict[str, Tensor], own: Shape, wanted: Shape) -> dict[str, Tensor]:
    """The student's state dict, cut from the base's."""
    layers = choose_layers(own.layers, wanted.layers)
    channels_D = _largest(channel_importance(state, layers), wanted.channels)
    names = {f"model.layers.{layer}.": f"model.layers.{place}." for place, layer in enumerate(layers)}
    small: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("model.layers."):
            small[name] = tensor.index_select(-1, channels_D).clone()
    for old, new in names.items():
        layer_state = {n.removeprefix(old): t for n, t in state.items() if n.startswith(old)}
        for name, tensor in _shrink_layer(layer_state, channels_D, own, wanted).items():
            small[new + name] = tensor
    return small


def channel_importance(state: dict[str, Tensor], layers: list[int]) -> Tensor:
    """[D]: how much of the matrices' squared norm goes through each channel of the residual stream."""

    def share(matrix: Tensor, dimension: int) -> Tensor:
        squares = matrix.double().square()
        return squares.sum(dim=dimension) / squares.sum().clamp_min(1e-30)

    total_D = share(state["model.embed_tokens.weight"], 0)
    if "lm_head.weight" in state:
        total_D = total_D + share(state["lm_head.weight"] * state["model.norm.weight"], 0)
    for layer in layers:
        prefix = f"model.layers.{layer}."
        for name in _READS:
            norm = "input_layernorm" if name.startswith("self_attn") else "post_attention_layernorm"
            total_D = total_D + share(state[f"{prefix}{name}.weight"] * state[f"{prefix}{norm}.weight"], 0)
        for name in _WRITES:
            total_D = total_D + share(state[f"{prefix}{name}.weight"], 1)
    return total_D


def _shrink_layer(
    state: dict[str, Tensor], channels_D: Tensor, own: Shape, wanted: Shape
) -> dict[str, Tensor]:
    neurons = _largest(_neuron_importance(state), wanted.neurons)
    queries, keys = _choose_heads(state, own, wanted)
    parts = own.head_dim // wanted.head_dim
    rows = {
        "self_attn.q_proj": _head_rows(queries, own, wanted),
        "self_attn.k_proj": _head_rows(keys, own, wanted),
        "self_attn.v_proj": _head_rows(keys, own, wanted),
        "mlp.gate_proj": neurons,
        "mlp.up_proj": neurons,
        "self_attn.o_proj": channels_D,
        "mlp.down_proj": channels_D,
    }
    columns = {"self_attn.o_proj": rows["self_attn.q_proj"], "mlp.down_proj": neurons}
    small: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module not in rows:  # norms: over the stream, or (qwen3) within a head of unchanged width
            small[name] = (tensor if "_norm" in module else tensor.index_select(0, channels_D)).clone()
            continue
        cut = tensor.index_select(0, rows[module])
        if kind == "weight":
            cut = cut.index_select(1, columns.get(module, channels_D))
        small[name] = cut * parts**0.5 if module == "self_attn.q_proj" and parts > 1 else cut.clone()
    return small


def _neuron_importance(state: dict[str, Tensor]) -> Tensor:
    gate, up, down = (state[f"mlp.{name}_proj.weight"].double() for name in ("gate", "up", "down"))
    norm = torch.linalg.vector_norm
    product_I: Tensor = norm(gate, dim=1) * norm(up, dim=1) * norm(down, dim=0)
    return product_I


def _choose_heads(state: dict[str, Tensor], own: Shape, wanted: Shape) -> tuple[list[int], list[int]]:
    """Query and key/value heads (parts of heads) that stay: base head * parts + part, in the base's order."""
    parts = own.head_dim // wanted.head_dim
    query, key, value = (
        _part_norms(state[f"self_attn.{name}_proj.weight"], own, parts) for name in ("q", "k", "v")
    )
    output = _part_norms(state["self_attn.o_proj.weight"].T, own, parts)
    weight_of_query = (query * output).tolist()
    per_group = own.heads // own.groups
    members = {
        group * parts + part: [(group * per_group + place) * parts + part for place in range(per_group)]
        for group in range(own.groups)
        for part in range(parts)
    }
    weight_of_group = {
        group: float(key[group] * value[group]) * sum(weight_of_query[head] for head in heads)
        for group, heads in members.items()
    }
    groups = sorted(sorted(members, key=lambda group: -weight_of_group[group])[: wanted.groups])
    share = wanted.heads // wanted.groups
    queries = [
        head
        for group in groups
        for head in sorted(sorted(members[group], key=lambda head: -weight_of_query[head])[:share])
    ]
    return queries, groups


def _part_norms(weight: Tensor, own: Shape, parts: int) -> Tensor:
    """[heads * parts]: the norm of every part's rows."""
    heads = weight.shape[0] // own.head_dim
    whole = range(heads * parts)
    rows = _part_rows(whole, own.head_dim, parts)
    parts_of_heads = weight.double().index_select(0, rows).reshape(heads * parts, -1)
    norms: Tensor = torch.linalg.vector_norm(parts_of_heads, dim=1)
    return norms


def _head_rows(heads: list[int], own: Shape, wanted: Shape) -> Tensor:
    return _part_rows(heads, own.head_dim, own.head_dim // wanted.head_dim)


def _part_rows(heads: Any, head_dim: int, parts: int) -> Tensor:
    """Rows of the chosen parts of heads: of the rotary pairs (i, i + E/2), part p has i = p mod parts."""
    half = head_dim // 2
    rows = []
    for number in heads:
        head, part = divmod(number, parts)
        pairs = torch.arange(part, half, parts) + head * head_dim
        rows += [pairs, pairs + half]
    return torch.cat(rows)


def _largest(importance: Tensor, number: int) -> Tensor:
    """Indices of the `number` largest, in ascending order; of equals the first ones."""
    return importance.sort(descending=True, stable=True).indices[:number].sort().values


def _choose_groups(own: Shape, heads: int, parts: int) -> int | None:
    """As many key/value heads as the base has to give, that go into `heads`."""
    fitting = (n for n in range(own.groups * parts, 0, -1) if _heads_fit(own, heads, n, parts))
    return next(fitting, None)


def _heads_fit(own: Shape, heads: int, groups: int, parts: int) -> bool:
    if not 0 < groups <= own.groups * parts or heads % groups:
        return False
    return heads // groups <= own.heads // own.groups


def _fixed(config: Any) -> dict[str, Any]:
    """What a cut can't change."""
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "rope_theta": rotary_base(config),
    }


def _cut_config(base: Any, shape: Shape, student: StudentSection) -> Any:
    config = copy.deepcopy(base)
    config.num_hidden_layers = shape.layers
    config.hidden_size = shape.channels
    config.intermediate_size = shape.neurons
    config.num_attention_heads = shape.heads
    config.num_key_value_heads = shape.groups
    config.head_dim = shape.head_dim
    if student.tie_word_embeddings is not None:
        config.tie_word_embeddings = student.tie_word_embeddings
    kinds = getattr(base, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[layer] for layer in choose_layers(base.num_hidden_layers, shape.layers)]
    limit_context(config, student)
    return config
