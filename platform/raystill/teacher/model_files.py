"""The teacher's checkpoint on this machine: found, or fetched from the hub, before any engine starts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.config.teacher import OpenModel
from raystill.errors import ConfigError, DataError, EnvironmentFault, RemoteError
from raystill.run.publish import sha256_file

_MODEL_KEY = "teacher.open.model.name"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
# Where the hub client notes, for files in a directory of the user's own, which commit each is from.
_DOWNLOAD_RECORDS = Path(".cache") / "huggingface" / "download"
_INDEX_NAME = "model.safetensors.index.json"


# What is used where a model doesn't say its context, or says a number that means "none given".
_UNSAID_CONTEXT = 2048
_LONGEST_CONTEXT = 1 << 30


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint directory that has passed `check_model_files`.

    `revision` is the commit of a hub model, also where a branch or tag was asked for; "" for a local one.
    """

    directory: Path
    is_local: bool
    revision: str
    weights: tuple[Path, ...]
    context_length: int
    vocab_size: int

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(path.stat().st_size for path in self.weights)

    def weights_sha256(self) -> str:
        """One hash over all weight files; reads them all."""
        digest = hashlib.sha256()
        for path in self.weights:
            digest.update(f"{path.name}:{sha256_file(path)}\n".encode())
        return digest.hexdigest()


def locate_model(model: OpenModel) -> ModelFiles:
    """The checkpoint that `model` names, downloaded first where it is a hub id, and checked.

    Raises ConfigError for a directory that isn't there, RemoteError for a hub id that can't be fetched,
    DataError for a checkpoint that can't or mustn't be loaded.
    """
    directory = Path(model.name).expanduser()
    if directory.is_dir():
        # Absolute: workers run in other directories.
        return check_model_files(directory.resolve(), model, is_local=True)
    if _looks_like_path(model.name):
        raise ConfigError(
            f"there is no model directory {model.name}",
            where=_MODEL_KEY,
            fix="correct the path (it is relative to the working directory), or give a hub id",
        )
    return check_model_files(_download(model), model, is_local=False)


def check_model_files(directory: Path, model: OpenModel, *, is_local: bool) -> ModelFiles:
    """Check that `directory` holds a config, safetensors weights, and no code that isn't opted into."""
    config = _read_json(directory / "config.json")
    _refuse_unwanted_code(config, model, directory, is_local=is_local)
    weights = _find_weights(directory)
    text_config = config.get("text_config", config)
    context = text_config.get("max_position_embeddings") or text_config.get("n_positions") or 0
    if not isinstance(context, int) or not 0 < context < _LONGEST_CONTEXT:
        context = _UNSAID_CONTEXT
    vocabulary = text_config.get("vocab_size") or 0
    revision = "" if is_local else _resolve_revision(directory, model)
    return ModelFiles(directory, is_local, revision, weights, context, int(vocabulary))


def _resolve_revision(directory: Path, model: OpenModel) -> str:
    """The commit that a hub model was fetched at: what a branch means today, it may not mean tomorrow."""
    if directory.parent.name == "snapshots":  # the hub client's cache: snapshots/<commit>
        return directory.name
    records = sorted((directory / _DOWNLOAD_RECORDS).glob("*.metadata"))
    commits = {path.read_text(encoding="utf-8").partition("\n")[0].strip() for path in records}
    if len(commits) == 1 and (commit := commits.pop()):
        return commit
    return model.revision or directory.name


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.count("/") != 1 or name.endswith("/")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path.name} is missing from the model",
            where=str(path.parent),
            fix=f"point {_MODEL_KEY} at a directory written by save_pretrained",
        ) from error
    except ValueError as error:
        raise DataError(f"{path.name} is not JSON", where=str(path), fix="copy the model again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} is not a JSON object", where=str(path), fix="copy the model again")
    return value


def _refuse_unwanted_code(
    config: dict[str, Any], model: OpenModel, directory: Path, *, is_local: bool
) -> None:
    if "auto_map" not in config:
        return
    if not model.trust_remote_code:
        raise ConfigError(
            "the model comes with its own Python code, which would run on this machine with your rights",
            where=str(directory / "config.json"),
            fix="read that code; then set teacher.open.model.trust_remote_code: true and pin "
            "teacher.open.model.revision to the commit you read, or choose another model",
        )
    if not is_local and not model.revision:
        raise ConfigError(
            "trust_remote_code without a pinned revision would run whatever the repository holds tomorrow",
            where="teacher.open.model.revision",
            fix="set it to the commit whose code you have read",
        )


def _find_weights(directory: Path) -> tuple[Path, ...]:
    weights = tuple(sorted(directory.glob("*.safetensors")))
    if not weights:
        pickles = [path.name for path in sorted(directory.iterdir()) if path.suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise DataError(
                f"the model has only pickle weights ({', '.join(pickles[:3])}); loading them can run code",
                where=str(directory),
                fix="convert them on a machine you can throw away: load the model there and call "
                "save_pretrained(path), or use a repository with .safetensors files",
            )
        raise DataError("the model has no weights (*.safetensors)", where=str(directory), fix="copy it again")
    for path in weights:
        _check_header(path)
    index = directory / _INDEX_NAME
    if index.exists():
        listed = set(_read_json(index).get("weight_map", {}).values())
        missing = sorted(listed - {path.name for path in weights})
        if missing:
            raise DataError(
                f"{missing[0]} is missing ({len(missing)} of {len(listed)} weight files)",
                where=str(directory),
                fix="download or copy the model again",
            )
    return weights


def _check_header(path: Path) -> None:
    """A safetensors file begins with the length of its JSON header (8 bytes, little endian), then that."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 0 < length < path.stat().st_size:
            try:
                json.loads(stream.read(length))
                return
            except ValueError:
                pass
    raise DataError(
        f"{path.name} is not a whole safetensors file",
        where=str(path),
        fix="download or copy the model again; a file of a few hundred bytes is a Git LFS pointer",
    )


def _download(model: OpenModel) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{_MODEL_KEY}: {model.name}"
    try:
        return Path(
            snapshot_download(
                model.name, revision=model.revision, local_dir=model.save_path, allow_patterns=_HUB_FILES
            )
        )
    except GatedRepoError as error:
        raise RemoteError(
            "the model is gated: your account has no access",
            where=where,
            fix="accept its terms on the hub, then run `hf auth login` (or set HF_TOKEN) on this machine",
        ) from error
    except RevisionNotFoundError as error:
        raise RemoteError(
            f"the hub has no revision {model.revision} of this model",
            where="teacher.open.model.revision",
            fix="use a commit, tag or branch that its page lists",
        ) from error
    except RepositoryNotFoundError as error:
        raise RemoteError(
            "the hub has no such model (or it is private)",
            where=where,
            fix="check the spelling (owner/name); for a private one run `hf auth login`; for a local "
            "directory check that the path exists",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise RemoteError(
            f"the model is not on this machine and the hub can't be reached ({type(error).__name__})",
            where=where,
            fix="connect to the network or unset HF_HUB_OFFLINE, or give the directory of a copy",
        ) from error
    except OSError as error:
        raise EnvironmentFault(
            f"the model could not be written: {error}", where=where, fix="free disk space"
        ) from error
