"""A base in 4 bits (QLoRA), and its values in full precision again.

bitsandbytes does the arithmetic, on NVIDIA GPUs and on CPUs. Adapters trained beside 4-bit weights fit the
values that those stand for, not the checkpoint's: what is saved, before and after training, is built from
them. (Merging into 4-bit weights would round the adapter away.)
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch

from raystill.config.models import Quantization
from raystill.errors import EnvironmentFault
from raystill.train.students.base import load_causal_lm

_WHERE = "assistant.quantization.load_in_4bit"


def require_bitsandbytes(where: str = _WHERE) -> None:
    """Raise EnvironmentFault, about the key `where`, if 4-bit weights can't be computed with."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentFault(
            "4-bit weights need the package bitsandbytes, which is not installed",
            where=where,
            fix="pip install 'raystill[qlora]', or ask for other weights",
        )


def load_in_4bit(
    name: str,
    quantization: Quantization,
    device: torch.device,
    attention: str,
    save_path: str | None = None,
    *,
    where: str = _WHERE,
    **options: Any,
) -> Any:
    """A checkpoint with its linear layers but the output projection in 4 bits, on `device`, all frozen.

    The rest is float32; `options` go to transformers' from_pretrained. Raises EnvironmentFault, about the key
    `where`, without bitsandbytes or its kernels for this device, and what `load_causal_lm` raises.
    """
    from transformers import BitsAndBytesConfig

    require_bitsandbytes(where)
    try:
        model = load_causal_lm(
            name,
            attention,
            save_path,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
                bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
                bnb_4bit_compute_dtype=torch.bfloat16 if quantization.bfloat16 else torch.float32,
            ),
            device_map={"": device},
            **options,
        )
    except (RuntimeError, ImportError) as error:
        raise EnvironmentFault(
            f"bitsandbytes can't hold 4-bit weights on this {device.type}: {error}",
            where=where,
            fix="ask for other weights, or use a machine that bitsandbytes supports",
        ) from error
    for module in _quantized(model).values():
        # On CPUs with AVX-512 the layer would rearrange its weights in the first evaluation, and a training
        # step after that would read them wrongly.
        module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def is_quantized(model: Any) -> bool:
    """Whether `model` holds 4-bit weights."""
    return getattr(model, "is_loaded_in_4bit", False)


def dequantized_copy(model: Any) -> Any:
    """A float32 model on the CPU, with the values that the 4-bit weights of `model` stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    quantized = _quantized(model)
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        layer = quantized.get(name.removesuffix(".weight"))
        value = parameter if layer is None else dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        weights[name] = value.detach().to(device="cpu", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(weights, strict=not config.tie_word_embeddings)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def _quantized(model: Any) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
