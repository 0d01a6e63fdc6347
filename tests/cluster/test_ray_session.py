"""Starting, joining and not reaching a Ray."""

from __future__ import annotations

import platform
import socket
import tempfile
from pathlib import Path

import pytest

from raystill.cluster import ray_session as module
from raystill.cluster.ray_session import ray_session
from raystill.config.schema import Config
from raystill.errors import RemoteError


def config_for(address: str) -> Config:
    return Config.model_validate({"cluster": {"address": address}})


@pytest.fixture(autouse=True)
def no_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_closed_port_is_named_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I44: Ray itself, which would wait for minutes, is not asked."""
    asked: list[object] = []
    monkeypatch.setattr("ray.init", lambda **settings: asked.append(settings))
    with (
        pytest.raises(RemoteError, match="no Ray cluster answers") as caught,
        ray_session(config_for(address)),
    ):
        pass
    assert asked == []
    assert address in caught.value.problems[0].where
    assert "cluster.address" in caught.value.problems[0].fix
    assert caught.value.exit_code == 5


def test_something_that_is_no_address() -> None:
    """I44."""
    with pytest.raises(RemoteError, match="not host:port"), ray_session(config_for("somewhere")):
        pass


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RemoteError, match="no Ray cluster answers"), ray_session(Config()):
        pass


def test_long_temporary_directories_are_avoided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    chosen = module._short_temp_dir()
    try:
        assert len(str(chosen)) <= 40
    finally:
        chosen.rmdir()


def test_a_cluster_of_another_version_is_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """I44: Ray's own comparison, and where to put a token."""
    import ray
    from ray._private.utils import check_version_info

    def init(**settings: object) -> None:
        check_version_info({"ray_version": "2.40.0", "python_version": "3.9.1"}, "node 127.0.0.1")

    monkeypatch.setattr(ray, "init", init)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RemoteError, match="can't be joined") as caught, ray_session(config_for(address)):
            pass
    assert caught.value.exit_code == 5
    (problem,) = caught.value.problems
    for version in ("Ray: 2.40.0", "Python: 3.9.1", f"Ray: {ray.__version__}", platform.python_version()):
        assert version in problem.what
    assert "RAY_AUTH_TOKEN" in problem.fix and address in problem.where


@pytest.mark.ray
def test_a_local_ray_leaves_nothing_behind() -> None:
    import ray

    with ray_session(Config()):
        assert ray.cluster_resources()["CPU"] >= 4
        temp_dir = Path(ray._private.worker._global_node.get_session_dir_path()).parent
        assert len(str(temp_dir)) <= 40
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        with ray_session(Config()):
            assert ray.is_initialized()
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not temp_dir.exists()


@pytest.mark.ray
def test_a_silent_port_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: Ray's joining thread can't be stopped, only left behind.
    import subprocess
    import sys

    script = """
import socket, sys
from raystill.cluster import ray_session as module
from raystill.config.schema import Config
from raystill.errors import RemoteError
module._JOIN_SECONDS = 2.0
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(5)
address = f"127.0.0.1:{listener.getsockname()[1]}"
try:
    with module.ray_session(Config.model_validate({"cluster": {"address": address}})):
        pass
except RemoteError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 5
    assert "did not answer" in finished.stdout
