"""The model that trains, in full or with LoRA, and how its hidden states come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raystill.errors import ConfigError
from raystill.train.attention import packed_inputs
from raystill.train.objective import Head

_PROBE_TOKENS = 4


@dataclass
class Student:
    """`causal_lm` is the transformers model; `network` is what trains: the same, or its PEFT wrapper."""

    causal_lm: Any
    network: nn.Module

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(iter(self.network.parameters())).device

    @property
    def is_adapted(self) -> bool:
        """Whether LoRA adapters train rather than all weights."""
        return self.network is not self.causal_lm

    @property
    def vocab_size(self) -> int:
        """Rows of the output projection."""
        return int(self.causal_lm.get_output_embeddings().weight.shape[0])

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return int(getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", 0)) or 1 << 30

    @property
    def pad_id(self) -> int:
        """The token that fills a batch; never looked at by a position that carries loss."""
        return int(self.causal_lm.config.pad_token_id or 0)

    def num_parameters(self, trainable_only: bool = False) -> int:
        """Weights, a tied one counted once."""
        return sum(
            math.prod(_shape(p)) for p in self.network.parameters() if p.requires_grad or not trainable_only
        )

    def hidden_states(
        self, input_ids_BT: Tensor, index_N: Tensor, row_lengths: Sequence[int] | None = None
    ) -> Tensor:
        """[N, D]: inputs of the output projection at the positions `index_N` of the flattened batch.

        With `row_lengths` the batch is one sequence of rows, none of which sees another
        (`attention.enable_packing` comes first).
        """
        packed = {} if row_lengths is None else packed_inputs(row_lengths, input_ids_BT.device)
        run = getattr(self.network, "run_backbone", self.causal_lm.base_model)  # see `sharding.shard`
        hidden_BTD: Tensor = run(input_ids=input_ids_BT, use_cache=False, **packed)[0]
        return hidden_BTD.flatten(0, 1).index_select(0, index_N)

    def idle_pass(self) -> None:
        """A pass that carries no loss: one token forward and, where gradients are on, zeros backward."""
        token_BT = torch.full((1, 1), self.pad_id, device=self.device)
        hidden_ND = self.hidden_states(token_BT, torch.zeros(1, dtype=torch.int64, device=self.device))
        if torch.is_grad_enabled():
            head = self.head()
            nothing = hidden_ND.sum() * 0 + head.weight_VD.sum() * 0
            nothing = nothing if head.bias_V is None else nothing + head.bias_V.sum() * 0
            nothing.backward()  # type: ignore[no-untyped-call]

    def head(self) -> Head:
        """The output projection as it trains (`modules_to_save` swaps it for a copy)."""
        layer: Any = self.causal_lm.get_output_embeddings()
        saved = getattr(layer, "modules_to_save", None)
        if saved is not None:
            layer = saved["default"]
        return Head(layer.weight, getattr(layer, "bias", None))


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """A parameter's shape; of a 4-bit one, that of what it stands for."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def validate_head(student: Student) -> None:
    """Raise ConfigError unless logits are exactly head(hidden states), as the loss kernel computes them."""
    ids_BT = torch.arange(_PROBE_TOKENS, device=student.device).remainder(student.vocab_size).unsqueeze(0)
    was_training = student.network.training
    student.network.eval()
    with torch.no_grad():
        expected_NV = student.causal_lm(input_ids=ids_BT, use_cache=False).logits[0].float()
        index_N = torch.arange(_PROBE_TOKENS, device=student.device)
        head = student.head()
        hidden_ND = student.hidden_states(ids_BT, index_N)
        logits_NV = nn.functional.linear(hidden_ND, head.weight_VD, head.bias_V).float()
    student.network.train(was_training)
    if not torch.allclose(logits_NV, expected_NV, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{type(student.causal_lm).__name__} changes its logits after the output projection (scaling or "
            "soft-capping), which the loss does not follow",
            where="student",
            fix="train another architecture; Qwen, Llama and Mistral models work",
        )
