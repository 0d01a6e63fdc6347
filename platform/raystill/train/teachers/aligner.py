"""Hidden-state alignment in a run: states are tapped where they are computed anyway, no second forward pass.

Projections live in the student's network while it trains, so optimizer, checkpoints and gradient sums know
them like any other weight; `remove` takes them out before anything is exported.

Shape letters: B sequences, T positions, N rows that carry loss, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from raystill.config.losses import HiddenAlignment
from raystill.errors import ConfigError
from raystill.losses.hidden_alignment import LayerProjections, hidden_alignment, map_layers
from raystill.losses.loss import Loss
from raystill.train.batches import Batch
from raystill.train.student import Student

PROJECTIONS = "hidden_projections"


class HiddenAligner:
    """The `losses.hidden` term between a student and the teacher beside it."""

    def __init__(self, student: Student, teacher: Any, section: HiddenAlignment) -> None:
        """Tap both models. Raises ConfigError for models without layers, or a map that doesn't fit."""
        own, taught = _layers(student.causal_lm), _layers(teacher)
        pairs = map_layers(
            None if section.layer_map is None else [(pair[0], pair[1]) for pair in section.layer_map],
            len(own),
            len(taught),
        )
        self.weight = section.weight
        self._kind = section.type
        self._network = student.network
        sizes = (_width(student.causal_lm), _width(teacher))
        self._projections = LayerProjections(len(pairs), *sizes).to(student.device)
        self._network.add_module(PROJECTIONS, self._projections)
        self._own = _Tap([own[layer - 1] for layer, _ in pairs])
        self._taught = _Tap([taught[layer - 1] for _, layer in pairs])

    def loss(self, batch: Batch, weights_N: Tensor | None = None) -> Loss:
        """The term on the batch that both models have just seen; `weights_N` multiplies each token's."""
        own, taught = (tap.states(batch.loss_index_N) for tap in (self._own, self._taught))
        return hidden_alignment(own, taught, self._projections, self._kind, weights_N)

    def remove(self) -> None:
        """Leave the network as an export wants it; harmless when called twice."""
        self._own.remove()
        self._taught.remove()
        if hasattr(self._network, PROJECTIONS):
            delattr(self._network, PROJECTIONS)


class _Tap:
    """The latest outputs of some layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._outputs: dict[int, Tensor] = {}
        self._order = [id(layer) for layer in layers]
        self._hooks = [layer.register_forward_hook(self._keep) for layer in dict.fromkeys(layers)]

    def states(self, index_N: Tensor) -> list[Tensor]:
        """[N, D] of each layer at the positions `index_N`; what was kept is let go."""
        states = [self._outputs[layer].flatten(0, 1).index_select(0, index_N) for layer in self._order]
        self._outputs.clear()
        return states

    def remove(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self._outputs.clear()

    def _keep(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._outputs[id(layer)] = output[0] if isinstance(output, tuple) else output


def _layers(causal_lm: Any) -> Sequence[nn.Module]:
    layers = getattr(causal_lm.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"{type(causal_lm).__name__} has no list of layers to align",
            where="losses.hidden",
            fix="remove it, or use an architecture with `layers`, such as Qwen, Llama or Mistral",
        )
    return list(layers)


def _width(causal_lm: Any) -> int:
    return int(causal_lm.config.get_text_config().hidden_size)
