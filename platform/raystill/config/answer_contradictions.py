"""Answers come from one place: a teacher that is asked, a prepared dataset, or a store that has them."""

from __future__ import annotations

from collections.abc import Iterator

from raystill.config.loaded import LoadedConfig
from raystill.errors import Problem

_FROM_STORE = "teacher.base.from_store"
_NO_EFFECT = {
    "teacher.closed": "no endpoint is asked",
    "teacher.store.path": "the run works in the store whose answers it takes",
    "teacher.base.num_samples": "every stored answer of a training prompt is taken",
    "teacher.base.reasoning": "thoughts stand in the store as they came, and training leaves them out",
    "teacher.open.data.download": "answers come from one place",
    "prompts.system": "the stored answers were given without it",
}


def find_answer_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """One problem per key that has no effect where the answers come from."""
    yield from _download(loaded)
    yield from _from_store(loaded)


def _download(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    for name, section in (("open", teacher.open), ("closed", teacher.closed)):
        if section is None:
            continue
        download, path = section.data.download, f"teacher.{name}.data.download"
        if download.size is not None and download.path is not None:
            yield Problem(
                f"`{path}.size` and `{path}.path` are both given; a prepared dataset comes from one place",
                loaded.where(f"{path}.size", f"{path}.path"),
                "keep path for the local copy, or size for the hub",
            )
        if name == "open" and teacher.closed is not None and loaded.is_changed(path):
            yield Problem(
                f"`{path}` has no effect: teacher.closed answers the prompts, and teacher.open only scores",
                loaded.where(path, "teacher.closed"),
                "set teacher.closed.data.download, or remove the closed teacher",
            )


def _from_store(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    if teacher.base.from_store is None:
        return
    for path, reason in _NO_EFFECT.items():
        if loaded.is_changed(path):
            yield Problem(
                f"`{path}` has no effect: `{_FROM_STORE}` is given, and {reason}",
                loaded.where(path, _FROM_STORE),
                "remove one of the two",
            )
    if teacher.open is not None and not teacher.open.pipeline.resume:
        yield Problem(
            f"`teacher.open.pipeline.resume` is false, and `{_FROM_STORE}` is given: a new store is empty",
            loaded.where("teacher.open.pipeline.resume", _FROM_STORE),
            "set resume: true",
        )
    if teacher.signals.capture == "generation":
        yield Problem(
            f"`teacher.signals.capture` is generation, and `{_FROM_STORE}` is given: nothing is generated",
            loaded.where("teacher.signals.capture", _FROM_STORE),
            "set capture: auto, which scores what the store has no logprobs for",
        )
