"""Every file in configs/: it loads, resolves to what was agreed, and says the truth about itself."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

import pytest

from raystill.cluster.model_size import student_parameters
from raystill.config.load import load_config
from raystill.config.loaded import LoadedConfig
from raystill.config.support import require_supported, unsupported_keys

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(CONFIGS.glob("*.yaml"))
STAGES = ["prepare", "generate", "score", "grade", "curate", "sft", "distill", "evaluate", "export"]
# Golden files of combinations, beside those of single files.
COMBINED = {"worker_9b+kd_recipe": ["worker_9b", "kd_recipe"]}


def load(*names: str, overrides: tuple[str, ...] = ()) -> LoadedConfig:
    return load_config([CONFIGS / f"{name}.yaml" for name in names], overrides)


def resolved(loaded: LoadedConfig) -> str:
    return json.dumps(loaded.config.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def test_there_are_configurations() -> None:
    assert {path.stem for path in FILES} >= {"demo", "stdlib_docs", "assistant", "worker_9b", "kd_recipe"}


@pytest.mark.parametrize("names", [[path.stem] for path in FILES] + list(COMBINED.values()), ids="+".join)
def test_each_resolves_to_its_golden_file(names: list[str], update_golden: bool) -> None:
    golden = GOLDEN / f"{'+'.join(names)}.json"
    found = resolved(load(*names))
    if update_golden:
        golden.write_text(found, encoding="utf-8")
    assert golden.exists(), "write it: pytest tests/configs --update-golden"
    agreed = golden.read_text(encoding="utf-8")
    changes = "\n".join(difflib.unified_diff(agreed.splitlines(), found.splitlines(), "agreed", "now", n=0))
    assert found == agreed, f"{changes}\nif that is meant: pytest tests/configs --update-golden"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {path.stem for path in FILES} | set(COMBINED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_names_the_schema_and_a_command_that_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    for mentioned in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / mentioned).exists(), mentioned


@pytest.mark.parametrize(
    "names", [["demo"], ["stdlib_docs"], ["worker_9b", "kd_recipe"], ["demo", "grade_recipe"]], ids="+".join
)
def test_what_is_said_to_run_needs_nothing_that_is_missing(names: list[str]) -> None:
    require_supported(load(*names), STAGES)


def test_the_readme_lists_every_file() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for path in CONFIGS.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text, path.name


def test_the_worker_has_the_size_that_its_comment_says() -> None:
    size = student_parameters(load("worker_9b").config.student, None)
    assert size is not None
    assert f"{size / 1e9:.2f} B" == "8.05 B"
    assert "8.05 B" in (CONFIGS / "worker_9b.yaml").read_text(encoding="utf-8")
    assert "8.05 B" in (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_the_assistants_student_has_the_size_that_its_comment_says() -> None:
    for overrides in ((), ("student.num_key_value_heads=4",)):
        student = load("assistant", overrides=("student.base_model_name=null", *overrides)).config.student
        size = student_parameters(student, 151_936)
        assert size is not None
        assert f"{size / 1e9:.2f} B" in (CONFIGS / "assistant.yaml").read_text(encoding="utf-8")


def test_the_workers_laptop_command_loads() -> None:
    text = (CONFIGS / "worker_9b.yaml").read_text(encoding="utf-8")
    overrides = [quoted or plain for quoted, plain in re.findall(r"--set (?:'([^']+)'|(\S+))", text)]
    assert len(overrides) > 10
    loaded = load("worker_9b", "kd_recipe", overrides=tuple(overrides))
    require_supported(loaded, STAGES)
    size = student_parameters(loaded.config.student, 768)
    assert size is not None
    assert size < 1_000_000


def test_later_files_win_and_say_so() -> None:
    loaded = load("worker_9b", "kd_recipe", overrides=("training.steps=7",))
    assert loaded.config.losses.kd_temperature == 2.0
    assert loaded.config.student.hidden_size == 4096
    assert loaded.config.training.steps == 7
    origin = loaded.provenance["training.steps"]
    assert str(origin.place) == "--set training.steps"
    assert "worker_9b.yaml" in str(origin.overrode[0].place)


def test_every_key_of_assistant_acts() -> None:
    assert unsupported_keys(load("assistant"), STAGES) == []


def test_the_demo_keeps_its_promises() -> None:
    config = load("demo").config
    assert config.train.sft is not None
    assert config.train.distillation is not None
    assert config.teacher.open is not None
    assert (ROOT / config.prompts.sources[0].path).exists()
    student = student_parameters(config.student, 768)
    assert student is not None
    assert student < 1_000_000
