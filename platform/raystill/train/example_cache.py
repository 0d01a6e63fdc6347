"""Encoded rows on disk, so that a stage that is started again doesn't read and tokenise its store again.

One directory per fingerprint of everything that the encoding depends on; it is published whole and its
manifest names every array, so one without a manifest, or with an array of another size, is not looked at.
Arrays are mapped, not read: a batch touches what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.run.publish import discard_directory, make_directory, publish_directory, write_json

# Counts up whenever rows are encoded in another way than before.
VERSION = 1
_MANIFEST = "manifest.json"

Arrays = Mapping[str, npt.NDArray[Any]]


def save_arrays(directory: Path, fingerprint: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Publish `arrays` and the JSON-able `facts` under `fingerprint`; what other fingerprints left goes."""
    make_directory(directory)
    with publish_directory(directory / fingerprint) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        sizes = {name: (temporary / f"{name}.npy").stat().st_size for name in arrays}
        write_json(temporary / _MANIFEST, {"version": VERSION, "sizes": sizes, "facts": dict(facts)})
    for other in directory.iterdir():
        if other.is_dir() and other.name != fingerprint and not other.name.startswith("."):
            discard_directory(other)


def load_arrays(directory: Path, fingerprint: str) -> tuple[dict[str, npt.NDArray[Any]], Any] | None:
    """What was saved under `fingerprint`: mapped arrays, and the facts. None where nothing valid is."""
    place = directory / fingerprint
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            return None
        arrays = {}
        for name, size in manifest["sizes"].items():
            path = place / f"{name}.npy"
            if path.stat().st_size != size:
                return None
            arrays[name] = _load(path)
        return arrays, manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
