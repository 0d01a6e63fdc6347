"""load_config: merging, provenance, and every problem in one error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.config.load import load_config
from raystill.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_no_files_give_the_defaults() -> None:
    loaded = load_config([])
    assert loaded.config.training.save_every == 100
    assert loaded.provenance == {}
    assert loaded.where("training.save_every") == "default (training.save_every)"


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "training:\n  steps: 10\n  save_every: 5\n")
    second = write(tmp_path / "b.yaml", "training:\n  steps: 20\n  log_every: 1\n")
    loaded = load_config([first, second], ["training.log_every=7"])
    training = loaded.config.training
    assert (training.steps, training.save_every, training.log_every) == (20, 5, 7)
    origin = loaded.provenance["training.steps"]
    assert str(origin.place) == f"{second}:2:10"
    assert [str(old.place) for old in origin.overrode] == [f"{first}:2:10"]
    assert str(loaded.provenance["training.log_every"].place) == "--set training.log_every"
    assert loaded.sources == (str(first), str(second), "--set training.log_every=7")
    assert loaded.is_set("training.steps")
    assert loaded.is_set("training")
    assert not loaded.is_set("training.warmup_ratio")


def test_all_problems_come_at_once_each_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.yaml",
        "run: {name: ok}\n"
        "training:\n"
        "  stpes: 10\n"
        "  save_every: three\n"
        "device: {type: gpu}\n"
        "datasets: [{name: x}]\n"
        "cuda:\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config([path], ["losses.kd_temperature=-1"])
    found = {problem.where: problem for problem in caught.value.problems}
    assert set(found) == {
        f"{path}:3:3 (training.stpes)",
        f"{path}:4:15 (training.save_every)",
        f"{path}:5:16 (device.type)",
        f"{path}:6:12 (datasets.0.key)",
        f"{path}:7:6 (cuda)",
        "--set losses.kd_temperature (losses.kd_temperature)",
    }
    assert "`training.steps`" in found[f"{path}:3:3 (training.stpes)"].fix
    assert '"three"' in found[f"{path}:4:15 (training.save_every)"].what
    assert "cuda, cpu, auto" in found[f"{path}:5:16 (device.type)"].what
    assert all(problem.fix for problem in caught.value.problems)
    assert caught.value.exit_code == 2


def test_an_unknown_key_does_not_hide_a_contradiction() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], ["training.stpes=1", "prompts.eval_size=5", "prompts.eval_fraction=0.5"])
    assert len(caught.value.problems) == 2


def test_syntax_errors_of_all_files_come_at_once(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.yaml", "a: b: c"), write(tmp_path / "b.yaml", "x: 1\nx: 2")
    with pytest.raises(ConfigError) as caught:
        load_config([first, second, tmp_path / "none.yaml"], ["nonsense"])
    assert len(caught.value.problems) == 4


def test_a_wrong_value_that_a_later_file_replaces_is_no_problem(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.yaml", "run: {seed: x}"), write(tmp_path / "b.yaml", "run: {seed: 3}")
    assert load_config([first, second]).config.run.seed == 3


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.distillation.bf16=yes", "write true"),
        ("train.distillation.bf16=off", "write false"),
        ("train.distillation.bf16='true'", "write true, without quotes"),
        ("training.steps=1e3", "write 1000"),
        ("training.steps='100'", "write 100, without quotes"),
        ("training.steps=10_000", "write 10000"),
        ("run.name=5", "in quotes"),
        ("device.type=cud", "did you mean `cuda`?"),
        ("training.save_every=null", "remove the line"),
        ("training=5", "put `key: value` lines"),
        ("prompts.sources=x", "write a list"),
        ("training.warmup_ratio=.nan", "warm"),
        ("training.weight_decay=1e999", "AdamW"),
        ("train.sft.peft.lora.target_modules=3", "all-linear"),
    ],
)
def test_the_repair_fits_the_mistake(override: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [override])
    problem = caught.value.problems[0]
    assert len(caught.value.problems) == 1
    assert fix in problem.fix or fix in problem.what


def test_a_secret_is_refused_masked_and_found_in_every_layer(tmp_path: Path) -> None:
    """I8."""
    token = "hf_" + "a1B2c3D4e5F6g7H8"
    path = write(tmp_path / "a.yaml", f"run: {{name: {token}}}\nunknown: {{deep: [{token}]}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([path], ["run.name=fine", f"cluster.address=ray://user:{token}@host"])
    text = str(caught.value)
    assert token not in text
    assert text.count("literal secret") == 3
    assert "environment" in text


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
_NAMES = st.sampled_from(
    ["run", "name", "training", "steps", "teacher", "open", "model", "datasets", "losses", "x"]
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_NAMES, _ANYTHING, max_size=4), st.lists(st.text(max_size=12), max_size=2))
def test_nothing_but_config_errors(
    tmp_path_factory: pytest.TempPathFactory, content: object, overrides: list[str]
) -> None:
    import yaml

    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="replace")
    try:
        load_config([path], overrides)
    except ConfigError as error:
        assert error.problems
        assert all(problem.what and problem.where for problem in error.problems)
