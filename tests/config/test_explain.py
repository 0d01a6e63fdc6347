"""explain: value, meaning, limits, who gave it, and what that replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.config.explain import explain, explain_all
from raystill.config.keys import all_keys
from raystill.config.load import load_config
from raystill.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_value_of_a_file_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    files = ["configs/worker_9b.yaml", "configs/kd_recipe.yaml"]
    found = explain(load_config(files), "training.save_every")
    source, line, _ = found.source.split(":")
    text = Path(source).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert source == "configs/worker_9b.yaml"
    assert text.strip() == f"save_every: {found.value}"
    assert found.default == 100
    assert found.allowed == "a whole number > 0"
    assert "checkpoints" in found.description


def test_what_was_replaced_is_listed_oldest_first(tmp_path: Path) -> None:
    files = []
    for name, value in (("a", 1), ("b", 2)):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"run:\n  seed: {value}\n", encoding="utf-8")
    found = explain(load_config(files, ["run.seed=3"]), "run.seed")
    assert (found.value, found.source) == (3, "--set run.seed")
    assert [(old.source, old.value) for old in found.overrode] == [
        (f"{files[0]}:2:9", 1), (f"{files[1]}:2:9", 2)
    ]  # fmt: skip


def test_a_default_says_so() -> None:
    found = explain(load_config([]), "prompts.over_length")
    assert (found.value, found.source, found.overrode) == ("keep", "default", ())


def test_a_section_lists_its_leaves() -> None:
    found = explain(load_config([], ["training.steps=5"]), "training")
    assert found.value["checkpoint_cleanup"]["max_checkpoints"] == 3
    paths = [leaf.path for leaf in found.leaves]
    assert "training.checkpoint_cleanup.min_free_space_gb" in paths
    assert {leaf.source for leaf in found.leaves} == {"default", "--set training.steps"}
    assert all(not leaf.leaves for leaf in found.leaves)


def test_elements_of_lists() -> None:
    loaded = load_config([], ["prompts.sources=[{path: a.jsonl}, {path: b.jsonl, limit: 3}]"])
    assert explain(loaded, "prompts.sources.1.limit").value == 3
    assert explain(loaded, "prompts.sources.1.limit").source == "--set prompts.sources"
    assert explain(loaded, "prompts.sources.0").leaves[0].path == "prompts.sources.0.path"
    assert "is not given" in explain(loaded, "prompts.sources.7.limit").note


def test_a_leaf_of_a_section_that_is_not_given() -> None:
    found = explain(load_config([]), "train.sft.learning_rate")
    assert (found.value, found.default, found.note) == (None, 1e-4, "train.sft is not given")


def test_a_key_without_a_life_yet_says_so() -> None:
    assert explain(load_config([]), "judge").note == "not supported yet"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("training.save_evry", "training.save_every"),
        ("temprature", "temperature"),
        ("kd.kd_temperature", "losses"),
    ],
)
def test_an_unknown_path_names_the_nearest(path: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        explain(load_config([]), path)


@pytest.mark.parametrize("path", ["", "..", "zzzzzz", "run.name.more", "datasets.x"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ConfigError, match="no key"):
        explain(load_config([]), path)


def test_every_key_can_be_explained() -> None:
    loaded = load_config([CONFIGS / "assistant.yaml"])
    for path in all_keys():
        assert explain(loaded, path).description, path
    assert [found.path for found in explain_all(loaded)][:3] == ["run", "device", "cuda"]
