"""A run whose answers are stored: the tiny world of the training tests, with a manifest for sweeps."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raystill.config.load import load_config
from raystill.config.loaded import LoadedConfig
from raystill.run.manifest import Manifest, save_manifest
from raystill.run.paths import RunPaths, StageName

_PATH = Path(__file__).parent.parent / "train" / "conftest.py"


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of 60 rows and the configs of a tiny student."""
    from raystill.text.chat import load_chat_format

    spec = importlib.util.spec_from_file_location("tiny_training_world", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("sweeps")
    module.make_tokenizer().save_pretrained(root / "tokenizer")
    chat = load_chat_format(str(root / "tokenizer"))
    module.write_store(root / "store", chat, module.make_rows(chat, 60))
    return module.World(root, root / "tokenizer", chat)


@pytest.fixture(scope="session")
def write_config(tiny_world: Any) -> Callable[..., Path]:
    """Writes the configuration of a sweep over a run with stored answers; returns the file."""

    def write(name: str, **tune: Any) -> Path:
        config = tiny_world.config(name, training={"max_nonfinite_steps": 1, "steps": 10})
        paths = RunPaths.from_config(config)
        tiny_world.list_requests(paths)
        stages: tuple[StageName, ...] = ("generate", "score")
        for stage in stages:
            manifest = Manifest(stage=stage, fingerprint="same", config={}, inputs={})
            save_manifest(paths.stage_dir(stage), manifest)
        values = config.model_dump(mode="json", exclude_unset=True) | {"tune": tune}
        path = Path(tiny_world.root) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def sweep_config(write_config: Callable[..., Path]) -> Callable[..., LoadedConfig]:
    """The same, loaded."""
    return lambda name, **tune: load_config([write_config(name, **tune)])


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """One Ray for all sweeps of a module."""
    import ray

    from raystill.cluster.ray_session import ray_session
    from raystill.config.schema import Config

    with ray_session(Config()):
        yield ray.get_runtime_context().gcs_address
