"""LoRA adapters around a model."""

from __future__ import annotations

from typing import Any

import torch

from raystill.config.training import LoraSection
from raystill.errors import ConfigError


def attach_lora(model: Any, lora: LoraSection, where: str) -> torch.nn.Module:
    """Wrap `model` with LoRA adapters; `where` is the path of the keys. Raises as `validate_lora`."""
    from peft import LoraConfig, get_peft_model

    validate_lora(model, lora, where)
    network: torch.nn.Module = get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=_targets(lora) or "all-linear",
            modules_to_save=lora.modules_to_save or None,
            ensure_weight_tying=bool(lora.modules_to_save and model.config.tie_word_embeddings),
            task_type=lora.task_type,
            bias=lora.bias,
        ),
    )
    return network


def validate_lora(model: Any, lora: LoraSection, where: str) -> None:
    """Raise ConfigError if a named module doesn't exist, or if the rank is above what the layers can use.

    Looks at names and shapes only: the model may be on the meta device.
    """
    shapes = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    linear = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = _targets(lora)
    unknown = [name for name in (*targets, *lora.modules_to_save) if name.rsplit(".", 1)[-1] not in names]
    if unknown or "lm_head" in targets:
        what = f"no module is called {', '.join(unknown)}" if unknown else "lm_head can't have an adapter"
        raise ConfigError(
            f"{what}; the model's linear layers are {', '.join(linear)}",
            where=f"{where}.target_modules",
            fix="use all-linear, or names from this list (modules_to_save: also embed_tokens, lm_head)",
        )
    _refuse_wide_rank(lora.r, shapes, targets, where)


def _targets(lora: LoraSection) -> list[str]:
    return [] if lora.target_modules == "all-linear" else list(lora.target_modules)


def _refuse_wide_rank(rank: int, shapes: dict[str, tuple[int, int]], targets: list[str], where: str) -> None:
    """An adapter of the full rank of a layer has more weights than the layer and can't say more."""
    adapted = {
        name: min(shape)
        for name, shape in shapes.items()
        if (name.rsplit(".", 1)[-1] in targets if targets else name != "lm_head")
    }
    widest = max(adapted.values(), default=rank)
    if rank > widest:
        raise ConfigError(
            f"rank {rank} is above the full rank {widest} of every layer that gets an adapter",
            where=f"{where}.r",
            fix=f"use at most {widest}; 8 to 64 is usual",
        )
