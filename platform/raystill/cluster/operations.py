"""What stages compute, in operations as long as training's: plans and rates count alike.

Weights of a token were measured on two cores, vLLM beside torch: a token that an engine decodes takes about
2.3 times as long as its 2 operations per parameter would in training, one of the prompt 0.8 times.
"""

from __future__ import annotations

_DECODED, _READ, _TRAINED = 2 * 2.3, 2 * 0.8, 6.0


def generation_operations(parameters: int, prompt_tokens: float, completion_tokens: float) -> float:
    """Of an engine that answers prompts."""
    return parameters * (_READ * prompt_tokens + _DECODED * completion_tokens)


def scoring_operations(parameters: int, prompt_tokens: float, completion_tokens: float) -> float:
    """Of an engine that reads prompts with their answers."""
    return parameters * _READ * (prompt_tokens + completion_tokens)


def training_operations(parameters: int, tokens: float) -> float:
    """Of a forward and a backward pass over rows of `tokens` in all."""
    return _TRAINED * parameters * tokens
