"""Running the stage prepare on small sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.prompts.stage import STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import StageOutcome, execute

FIXTURES = Path(__file__).parents[1] / "fixtures" / "prompts"


class PreparedRun:
    """One run directory, prepared any number of times with `prompts` settings."""

    def __init__(self, root: Path, tokenizer_dir: Path) -> None:
        self.root = root
        self.tokenizer_dir = tokenizer_dir
        self.paths = RunPaths.from_config(self.config())

    def config(self, *sources: dict[str, Any], **sections: Any) -> Config:
        """A configuration with these sources; sections are merged one level deep."""
        prompts = {"sources": list(sources), **sections.pop("prompts", {})}
        teacher = {"open": {"model": {"name": str(self.tokenizer_dir)}}, **sections.pop("teacher", {})}
        run = {"dir": str(self.root / "runs"), "name": "test"}
        return Config.model_validate({"run": run, "prompts": prompts, "teacher": teacher, **sections})

    def prepare(
        self, *sources: dict[str, Any], fresh: bool = False, accept_new_data: bool = False, **sections: Any
    ) -> StageOutcome:
        """Execute the stage as every front end does."""
        config = self.config(*sources, **sections)
        return execute(STAGE, config, self.paths, fresh=fresh, accept_new_data=accept_new_data)

    def left_behind(self) -> list[str]:
        """What a refused run wrote, besides its log."""
        files = (path for path in (self.root / "runs").rglob("*") if path.is_file())
        return [path.name for path in files if path.parent.name != "logs"]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_dir: Path) -> PreparedRun:
    return PreparedRun(tmp_path, tokenizer_dir)


@pytest.fixture(scope="session")
def prepared_stdlib(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> PreparedRun:
    """The standard library of the running Python, prepared once."""
    run = PreparedRun(tmp_path_factory.mktemp("stdlib"), tokenizer_dir)
    run.prepare({"path": "stdlib", "format": "python_source"})
    return run


@pytest.fixture(scope="session")
def prompt_fixtures() -> Path:
    return FIXTURES


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (text or bytes) to a file and return it."""

    def write(*lines: str | bytes, name: str = "data.jsonl", end: bytes = b"\n") -> Path:
        path = tmp_path / name
        content = [line if isinstance(line, bytes) else line.encode("utf-8") for line in lines]
        path.write_bytes(b"".join(line + end for line in content))
        return path

    return write
