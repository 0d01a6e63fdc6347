"""Two checkpoints side by side: which tensors changed and how far, and which keys of the state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raystill.checkpoint.parts import open_group
from raystill.checkpoint.store import STATE_NAME, CheckpointManifest, verify_checkpoint


@dataclass(frozen=True)
class TensorChange:
    """A tensor that both have and that differs. `max_abs_diff` is None where shape or type differ."""

    name: str
    max_abs_diff: float | None
    left: str
    right: str


@dataclass(frozen=True)
class CheckpointDiff:
    """What differs between two checkpoints; names are `group/name`, state keys dotted paths."""

    num_equal: int
    changed: tuple[TensorChange, ...]
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]
    state: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether the two hold the same tensors, bit for bit, and the same state."""
        return not (self.changed or self.only_left or self.only_right or self.state)


def diff_checkpoints(left: Path, right: Path) -> CheckpointDiff:
    """Compare the checkpoints at `left` and `right`, one tensor of each in memory at a time.

    Raises DataError for one that is missing or damaged.
    """
    manifests = verify_checkpoint(left), verify_checkpoint(right)
    names = [
        set(_tensor_names(path, manifest)) for path, manifest in zip((left, right), manifests, strict=True)
    ]
    equal, changed = 0, []
    for group in manifests[0].groups:
        shared = sorted(name for owner, name in names[0] & names[1] if owner == group)
        for name, one, other in _pairs(left, right, manifests, group, shared):
            if _is_equal(one, other):
                equal += 1
            else:
                changed.append(_describe_change(f"{group}/{name}", one, other))
    return CheckpointDiff(
        num_equal=equal,
        changed=tuple(changed),
        only_left=tuple(sorted("/".join(pair) for pair in names[0] - names[1])),
        only_right=tuple(sorted("/".join(pair) for pair in names[1] - names[0])),
        state=tuple(_state_changes(_read_state(left), _read_state(right))),
    )


def _tensor_names(path: Path, manifest: CheckpointManifest) -> Iterator[tuple[str, str]]:
    for group in manifest.groups:
        with open_group(path, group, manifest.num_parts) as reader:
            for name in reader.names():
                yield group, name


def _pairs(
    left: Path,
    right: Path,
    manifests: tuple[CheckpointManifest, CheckpointManifest],
    group: str,
    names: list[str],
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    if not names:
        return
    with (
        open_group(left, group, manifests[0].num_parts) as one,
        open_group(right, group, manifests[1].num_parts) as other,
    ):
        for name in names:
            yield name, one.tensor(name), other.tensor(name)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bytes_ = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(bytes_[0], bytes_[1])


def _describe_change(name: str, one: torch.Tensor, other: torch.Tensor) -> TensorChange:
    is_comparable = one.shape == other.shape and one.dtype == other.dtype
    distance = float((one.double() - other.double()).abs().max()) if is_comparable else None
    return TensorChange(name, distance, _kind(one), _kind(other))


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    return state


def _state_changes(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(_leaves(left)), dict(_leaves(right))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
