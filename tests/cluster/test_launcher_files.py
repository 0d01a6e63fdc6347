"""cluster/*.yaml, offline: Ray's own validation, a closed schema for KubeRay, and our rules."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raystill.cluster.upload import load_runtime_env

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ("aws", "gcp", "azure")
LAUNCHERS = (*CLOUDS, "on_premise")
MANIFESTS = ("kuberay_cluster", "kuberay_job")
_SPEC = importlib.util.spec_from_file_location("kuberay_schema", Path(__file__).parent / "kuberay_schema.py")
assert _SPEC is not None and _SPEC.loader is not None
kuberay = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kuberay)


def load(name: str) -> dict[str, Any]:
    text = (ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def validate_launcher(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_the_launcher_files(name: str) -> None:
    validate_launcher(load(name))


def test_ray_refuses_a_misspelt_node_type() -> None:
    config = load("aws")
    config["available_node_types"]["gpu_spot"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_launcher(config)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launched_head_is_closed_and_schedules_nothing(name: str) -> None:
    config = load(name)
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head
    assert "RAY_enable_autoscaler_v2=1" in head and "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in " ".join(config["worker_start_ray_commands"])
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    if "available_node_types" in config:
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"]["CPU"] == 0
        assert {kind["labels"]["market-type"] for kind in types.values() if "labels" in kind} == {
            "spot",
            "on-demand",
        }
        assert all(kind["min_workers"] == 0 for kind in types.values())
        assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", CLOUDS)
def test_every_launched_node_sees_the_disk_of_the_runs(name: str) -> None:
    config = load(name)
    assert "--volume /shared:/shared" in config["docker"]["run_options"]
    mounting = " ".join(config["initialization_commands"])
    assert re.search(r"mount -t nfs4? .*:/\S* /shared\b", mounting)
    assert "run.dir=/shared/" in (ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_fit_kuberay(name: str) -> None:
    manifest = load(name)
    jsonschema.validate(manifest, kuberay.SCHEMAS[manifest["kind"]])
    spec = cluster_spec(name)
    assert spec["authOptions"]["mode"] == "token" and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert "/shared" in [mount["mountPath"] for mount in mounts]
        assert any(volume.get("emptyDir", {}).get("medium") == "Memory"
                   for volume in group["template"]["spec"]["volumes"])  # fmt: skip
    assert {group["labels"]["market-type"] for group in spec["workerGroupSpecs"]} == {"spot", "on-demand"}


def test_a_typo_in_a_manifest_is_seen() -> None:
    manifest = load("kuberay_cluster")
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, kuberay.SCHEMAS["RayCluster"])


def test_every_file_names_the_pinned_versions() -> None:
    assert "ray==2.60" in (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8")
    assert "ray:2.60.0-py311" in (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    for name in MANIFESTS:
        assert cluster_spec(name)["rayVersion"] == "2.60.0"


@pytest.mark.parametrize("name", [*LAUNCHERS, *MANIFESTS])
def test_no_file_holds_a_secret(name: str) -> None:
    text = (ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(RAY_AUTH_TOKEN|API_KEY|SECRET_KEY|PASSWORD)\s*[=:]", text)
    assert "0.0.0.0" not in text or name == "kuberay_job"


def test_the_readme_says_of_every_file_how_far_it_was_validated() -> None:
    readme = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "cluster").iterdir():
        if path.name != "README.md":
            assert f"`{path.name}`" in readme, path.name


def test_the_runtime_environment_loads() -> None:
    assert load_runtime_env(ROOT / "cluster" / "runtime_env.yaml")["env_vars"]["PYTHONPATH"] == "platform"
