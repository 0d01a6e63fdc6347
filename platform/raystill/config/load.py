"""Files and overrides in, one checked `Config` out, with the origin of every value.

    loaded = load_config(["configs/worker_9b.yaml", "configs/kd_recipe.yaml"], ["training.steps=100"])
    loaded.config.training.steps, loaded.where("training.steps")

Everything that is wrong is reported at once, each with file, line, key and repair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from raystill.config.contradictions import find_contradictions
from raystill.config.loaded import LoadedConfig
from raystill.config.merge import apply_override, iter_origins, merge
from raystill.config.schema import Config
from raystill.config.secret import has_secret, masked
from raystill.config.violations import find_violations, without_unknown_keys
from raystill.config.yaml_source import Node, Place, load_yaml_file
from raystill.errors import ConfigError, Problem

_KEEP_OUT = "take it out of the file, revoke it if it was shared, and pass secrets as environment variables"


def load_config(files: Sequence[str | os.PathLike[str]], overrides: Sequence[str] = ()) -> LoadedConfig:
    """Merge `files` from left to right, then each `a.b.c=value` of `overrides`, and check the result.

    Raises ConfigError with every problem found: unreadable files and YAML errors; or else literal secrets,
    unknown keys, wrong values and contradictions.
    """
    tree = _merged(files, overrides)
    problems = list(_find_secrets(tree))
    config, violations = _validated(tree)
    problems += violations
    loaded = LoadedConfig(
        config=config or Config(),
        provenance=dict(iter_origins(tree)),
        sources=(*(os.fspath(file) for file in files), *(f"--set {masked(text)}" for text in overrides)),
    )
    if config is not None:
        problems += find_contradictions(loaded)
    _raise_if_any(problems)
    return loaded


def _merged(files: Sequence[str | os.PathLike[str]], overrides: Sequence[str]) -> Node:
    problems: list[Problem] = []
    tree = Node({}, Place("default"))
    for file in files:
        try:
            tree = merge(tree, load_yaml_file(file))
        except ConfigError as error:
            problems += error.problems
    for override in overrides:
        try:
            tree = apply_override(tree, override)
        except ConfigError as error:
            problems += error.problems
    _raise_if_any(problems)
    return tree


def _validated(tree: Node) -> tuple[Config | None, list[Problem]]:
    """The configuration, or None; and what the schema refuses. Unknown keys alone don't stop the checking."""
    try:
        return Config.model_validate(tree.plain()), []
    except ValidationError as error:
        problems = find_violations(tree, error)
        known = without_unknown_keys(tree, error)
    if known is None:
        return None, problems
    config, more = _validated(known)
    return config, problems + more


def _find_secrets(node: Node, path: str = "") -> Iterator[Problem]:
    for old in node.overrode:
        yield from _find_secrets(old, path)
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            if has_secret(key):
                yield _secret(masked(key), node.key_places.get(key, node.place))
            yield from _find_secrets(child, f"{path}.{key}" if path else key)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _find_secrets(child, f"{path}.{index}")
    elif isinstance(node.value, str) and has_secret(node.value):
        yield _secret(path, node.place)


def _secret(path: str, place: Place) -> Problem:
    return Problem(f"`{path}` holds a literal secret", f"{place} ({path})", _KEEP_OUT)


def _raise_if_any(problems: Sequence[Problem]) -> None:
    if problems:
        count = f"{len(problems)} problems in the configuration" if len(problems) > 1 else problems[0].what
        raise ConfigError(count, problems[0].where, problems[0].fix, problems=tuple(problems))
