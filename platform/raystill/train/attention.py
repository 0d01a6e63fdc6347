"""Attention over rows that lie end to end in one sequence: every row sees itself alone.

A dense block-diagonal mask costs O(T^2) over the whole sequence; here each row is one causal call, so the
work is that of the rows alone. Registered with transformers beside its own implementations; without row
lengths it is `sdpa`. transformers hands `document_lengths` through every layer to the attention function, and
leaves a mask that already has four dimensions alone: an empty one keeps it from building its own.

Shape letters: B sequences (1 where packed), H heads, T positions, E numbers per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raystill.errors import ConfigError
from raystill.train.settings import TrainSettings

DOCUMENT_ATTENTION = "raystill_documents"
_PROBE_LENGTHS = (3, 2, 3)


def register_document_attention() -> None:
    """Make `DOCUMENT_ATTENTION` known to transformers; doing it again changes nothing."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(DOCUMENT_ATTENTION, attend_documents)
    AttentionMaskInterface.register(DOCUMENT_ATTENTION, sdpa_mask)


def attend_documents(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    attention_mask: Tensor | None,
    document_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """[B, T, H, E]: causal attention within each of `document_lengths`; None: transformers' sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if document_lengths is None:
        output, _ = sdpa_attention_forward(
            module, query_BHTE, key_BHTE, value_BHTE, attention_mask, **options
        )
        return output, None
    lengths = list(document_lengths)
    parts = zip(*(torch.split(x, lengths, dim=2) for x in (query_BHTE, key_BHTE, value_BHTE)), strict=True)
    outputs = [_attend_row(module, *part, **options) for part in parts]
    return torch.cat(outputs, dim=1), None


def _attend_row(
    module: nn.Module, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, **options: Any
) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length, window = query_BHTE.shape[2], options.get("sliding_window")
    mask = None
    if window is not None and window < length:
        place = torch.arange(length, device=query_BHTE.device)
        distance = place[:, None] - place[None, :]
        mask = ((distance >= 0) & (distance < window))[None, None]
    output_BTHE: Tensor
    output_BTHE, _ = sdpa_attention_forward(module, query_BHTE, key_BHTE, value_BHTE, mask, **options)
    return output_BTHE


def packed_inputs(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a packed forward pass adds to `input_ids`: position ids [1, T] that start again at every row."""
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    return {
        "position_ids": positions_T.unsqueeze(0).to(device, non_blocking=True),
        "document_lengths": tuple(lengths),
        "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
    }


def enable_packing(causal_lm: Any) -> None:
    """Let `causal_lm` take packed sequences. Raises ConfigError, leaving it as it was, if rows would mix."""
    register_document_attention()
    before = causal_lm.config._attn_implementation
    was_training = causal_lm.training
    causal_lm.eval()
    try:
        causal_lm.set_attn_implementation(DOCUMENT_ATTENTION)
        isolated = _rows_are_isolated(causal_lm)
    except (TypeError, ValueError, RuntimeError):
        isolated = False
    causal_lm.train(was_training)
    if isolated:
        return
    causal_lm.set_attn_implementation(before)
    raise ConfigError(
        f"{type(causal_lm).__name__} doesn't keep rows apart that lie in one sequence",
        where="training.packing",
        fix="set it to off (or auto): rows are then padded to the longest of their batch",
    )


def choose_packing(settings: TrainSettings, causal_lm: Any, notes: list[str]) -> bool:
    """Whether rows are packed, and `causal_lm` made ready for it.

    `auto` packs on GPUs, and says in `notes` where the model doesn't let it.
    Raises ConfigError where `training.packing: on` can't be had.
    """
    if settings.packing == "off":
        return False
    on_gpu = next(iter(causal_lm.parameters())).device.type == "cuda"
    # On two cores, rows of 50 tokens sorted by length took 76 s padded and 116 s packed: a call of attention
    # per row costs more than the little padding.
    if settings.packing == "auto" and not on_gpu:
        return False
    if settings.source != "store":
        if settings.packing == "on":
            raise ConfigError(
                f"the teacher of source {settings.source} reads padded batches",
                where="training.packing, train.distillation.teacher.source",
                fix="set training.packing to auto or off",
            )
        return False
    try:
        enable_packing(causal_lm)
    except ConfigError as error:
        if settings.packing == "on":
            raise
        notes.append(f"batches are padded: {error.what}")
        return False
    return True


def _rows_are_isolated(causal_lm: Any) -> bool:
    """Whether rows give the same hidden states packed as alone, in another order of tokens each."""
    device = next(iter(causal_lm.parameters())).device
    vocab_size = int(causal_lm.get_input_embeddings().weight.shape[0])
    ids_T = torch.arange(7, 7 + sum(_PROBE_LENGTHS), device=device).remainder(vocab_size)
    network = causal_lm.base_model
    with torch.no_grad():
        packed_TD = network(input_ids=ids_T[None], use_cache=False, **packed_inputs(_PROBE_LENGTHS, device))[
            0
        ][0]
        alone = [
            network(input_ids=row_T[None], use_cache=False)[0][0]
            for row_T in torch.split(ids_T, list(_PROBE_LENGTHS))
        ]
    return torch.allclose(packed_TD.float(), torch.cat(alone).float(), rtol=1e-3, atol=1e-3)
