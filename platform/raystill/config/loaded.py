"""A loaded configuration: the values, and where each of them came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystill.config.keys import find_key
from raystill.config.schema import Config
from raystill.config.yaml_source import Place


@dataclass(frozen=True)
class Origin:
    """Where a value was given, and the values of earlier files that it replaced (oldest first)."""

    value: Any
    place: Place
    overrode: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class LoadedConfig:
    """What `load_config` returns.

    `provenance` has the origin of every value that a file or `--set` gave, by dotted path; a path that isn't
    in it has its default. `sources` lists the files and overrides in the order in which they were merged.
    """

    config: Config
    provenance: Mapping[str, Origin] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def is_set(self, path: str) -> bool:
        """Whether a file or --set gave `path`, or anything below it."""
        return path in self.provenance or any(known.startswith(f"{path}.") for known in self.provenance)

    def is_changed(self, path: str) -> bool:
        """Whether a file or --set gave `path`, or anything below it, a value other than its default.

        A resolved configuration spells out every default; those aren't wishes.
        """
        for known, origin in self.provenance.items():
            if known == path or known.startswith(f"{path}."):
                key = find_key(known)
                if key is None or origin.value not in (key.default, {}):
                    return True
        return False

    def where(self, *paths: str) -> str:
        """`file:line:col (path)` of each path, or `default (path)`; for messages."""
        return "; ".join(f"{self._place(path)} ({path})" for path in paths)

    def _place(self, path: str) -> str:
        below = [origin for known, origin in self.provenance.items() if known.startswith(f"{path}.")]
        origin = self.provenance.get(path) or next(iter(below), None)
        return str(origin.place) if origin else "default"
