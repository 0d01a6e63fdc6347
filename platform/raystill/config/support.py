"""Keys that are documented and don't act yet: a run that would need one is refused, never quietly different.

A file that carries such keys loads and can be planned. `require_supported` is called with the stages that are
about to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raystill.config.keys import Key, all_keys
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.config.student_init import (
    ARCHITECTURE_KEYS,
    resolve_student_init,
)
from raystill.errors import ConfigError, Problem

# Which stages would have to honour a key. One that isn't listed (a whole section, such as `tune`) changes
# the pipeline itself, so no stage runs with it.
STAGES_OF_KEY: dict[str, tuple[str, ...]] = {
    "export.onnx": ("export",),
    "export.coreml": ("export",),
    "export.gguf": ("export",),
}


def unsupported_keys(config: Config | LoadedConfig, stages: Sequence[str]) -> list[Problem]:
    """One problem per key that has a value which `stages` couldn't honour yet, or that they miss."""
    loaded = config if isinstance(config, LoadedConfig) else LoadedConfig(config)
    named = isinstance(config, LoadedConfig)
    problems = []
    for path, shown, needed_by in _unsupported(loaded.config):
        affected = [stage for stage in stages if needed_by is None or stage in needed_by]
        if affected:
            problems.append(
                Problem(
                    f"`{path}`{shown} is not supported yet; {affected[0]} would need it",
                    loaded.where(path) if named else path,
                    _fix(path),
                )
            )
    problems += _missing_student(loaded, stages)
    return problems


def require_supported(config: Config | LoadedConfig, stages: Sequence[str]) -> None:
    """Raise ConfigError naming every key that `stages` can't honour yet, or can't do without."""
    problems = unsupported_keys(config, stages)
    if problems:
        what = (
            problems[0].what if len(problems) == 1 else f"{len(problems)} keys stand in the way of this run"
        )
        raise ConfigError(what, problems[0].where, problems[0].fix, problems=tuple(problems))


def marked_keys() -> list[Key]:
    """The keys that the schema marks as not acting yet, outermost only."""
    marked: list[Key] = []
    for key in all_keys().values():
        if key.not_yet and not any(key.path.startswith(f"{outer.path}.") for outer in marked):
            marked.append(key)
    return marked


def _unsupported(config: Config) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """Path, how its value reads in a message, and the stages that would need it (None: any)."""
    for key in marked_keys():
        value = _value_at(config, key.path, key.default)
        if value != key.default:
            shown = f": {_written(value)}" if isinstance(value, str | bool) else ""
            yield key.path, shown, STAGES_OF_KEY.get(key.path)


def _missing_student(loaded: LoadedConfig, stages: Sequence[str]) -> Iterator[Problem]:
    """A recipe alone loads without a student; training one needs it described."""
    config = loaded.config
    trainers = [name for name in stages if name == "distill" or (name == "sft" and config.assistant is None)]
    if trainers and resolve_student_init(config.student) is None:
        yield Problem(
            f"{trainers[0]} trains a student, and `student` doesn't say which",
            "student",
            "set student.base_model_name, or " + ", ".join(f"student.{key}" for key in ARCHITECTURE_KEYS),
        )


def _fix(path: str) -> str:
    default = all_keys()[path].default
    return f"remove it, or lay the default on top: --set {path}={_written(default)}"


def _value_at(config: Config, path: str, default: Any) -> Any:
    value: Any = config
    for part in path.split("."):
        if value is None:
            return default
        value = getattr(value, part)
    return value


def _written(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
