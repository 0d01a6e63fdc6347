"""The stages sft and distill as the pipeline sees them: inputs, what is refused early, progress."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raystill.errors import ConfigError, DataError, EnvironmentFault, RaystillError
from raystill.run.events import EventLog
from raystill.run.stage import Stage, StageContext, changed_keys
from raystill.train.stage import DISTILL_STAGE, SFT_STAGE, _warn_of_size, progress_fields
from raystill.train.students import quantize


def test_score_is_an_input_where_the_divergence_needs_it(empty_world: Any) -> None:
    assert DISTILL_STAGE.inputs(empty_world.config()) == ("generate", "score")
    text_only = empty_world.config(losses={"kl_weight": 0.0, "ce_weight": 1.0})
    assert DISTILL_STAGE.inputs(text_only) == ("generate",)
    chained = empty_world.config(train={"distillation": {"init": "auto"}})
    assert DISTILL_STAGE.inputs(chained) == ("generate", "score", "sft")
    assert SFT_STAGE.inputs(chained) == ("generate",)


@pytest.mark.parametrize(("stage", "section"), [(SFT_STAGE, "sft"), (DISTILL_STAGE, "distillation")])
def test_a_run_goes_on_with_another_number_of_workers_but_not_with_other_steps(
    empty_world: Any, stage: Stage, section: str
) -> None:
    """F32: what decides the rows of a step is one number, however the workers share them."""

    def changed(training: dict[str, Any], **rows: int) -> list[str]:
        before = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        one = empty_world.config(training={"num_workers": 2}, train={section: before})
        other = empty_world.config(training=training, train={section: before | rows})
        return changed_keys(stage.settings(one), stage.settings(other))

    assert changed({"num_workers": 1}, gradient_accumulation_steps=2) == []
    assert changed({"num_workers": [1, 2], "cpus_per_worker": 1}) == []
    assert changed({"num_workers": 4}, per_device_train_batch_size=2) == []
    (line,) = changed({"num_workers": 1})
    assert line.startswith("num_workers x per_device_train_batch_size") and line.endswith(": 8 -> 4")


def test_preflight_refuses_before_anything_is_written(world: Any, tokenizer_maker: Any) -> None:
    """I26, I36: another tokenizer, and a copy over files that are no model."""
    directory = world.root / "other"
    tokenizer_maker().save_pretrained(directory)
    (directory / "tokenizer.json").write_text(
        (directory / "tokenizer.json").read_text(encoding="utf-8").replace('"q":', '"qq":'), encoding="utf-8"
    )
    assert DISTILL_STAGE.preflight is not None
    other = world.config(student={"tokenizer": str(directory)})
    with pytest.raises(DataError, match="tokenizers differ"):
        DISTILL_STAGE.preflight(other, world.paths(other))
    shrunk = world.config(student={"init": "shrink"})
    with pytest.raises(ConfigError, match="not described"):
        DISTILL_STAGE.preflight(shrunk, world.paths(shrunk))
    (world.root / "thesis").write_text("years of work")
    copied = world.config(train={"distillation": {"output_dir": str(world.root / "thesis")}})
    with pytest.raises(EnvironmentFault, match="not a model"):
        DISTILL_STAGE.preflight(copied, world.paths(copied))
    assert not world.paths(copied).root.exists()


@pytest.mark.parametrize("stage", [SFT_STAGE, DISTILL_STAGE])
def test_a_student_that_is_not_there_is_refused_before_a_teacher_is_asked(
    empty_world: Any, stage: Stage
) -> None:
    """I10, I13: without answers, before anything is written."""
    assert stage.foresee is not None

    def refuse(kind: type[RaystillError], text: str, **student: Any) -> None:
        config = empty_world.config(student=student, train={"sft": {}, "distillation": {"init": "student"}})
        with pytest.raises(kind, match=text) as caught:
            stage.foresee(config, empty_world.paths(config))
        assert caught.value.problems[0].fix
        assert not empty_world.paths(config).root.exists()

    missing = str(empty_world.root / "no-such-model")
    refuse(ConfigError, "is not a directory", base_model_name=missing, init="base")
    pickled = empty_world.root / "pickled"
    empty_world.chat.tokenizer.save_pretrained(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refuse(DataError, "only pickle weights", base_model_name=str(pickled), init="base")
    refuse(ConfigError, "not described", init="shrink")
    sound = empty_world.config(train={"sft": {}, "distillation": {"init": "student"}})
    stage.foresee(sound, empty_world.paths(sound))


def test_4_bit_teachers_need_their_package_before_anything_is_asked(
    empty_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I34."""
    teacher = {"source": "online", "models": [{"name": "x/y", "weights": "4bit"}]}
    config = empty_world.config(train={"distillation": {"teacher": teacher}})
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    assert DISTILL_STAGE.foresee is not None
    with pytest.raises(EnvironmentFault, match="bitsandbytes") as caught:
        DISTILL_STAGE.foresee(config, empty_world.paths(config))
    assert caught.value.problems[0].where == "train.distillation.teacher.models"


def test_a_student_larger_than_its_teacher_is_told_before_the_first_step(empty_world: Any) -> None:
    """I48: sizes follow from the keys; nothing is built."""
    from safetensors.numpy import save_file

    teacher = empty_world.root / "teacher"
    empty_world.chat.tokenizer.save_pretrained(teacher)
    save_file({"weight": np.zeros((100, 10), np.float32)}, teacher / "model.safetensors")
    config = empty_world.config(teacher={"open": {"model": {"name": str(teacher)}}})
    told: list[dict[str, Any]] = []
    with EventLog(empty_world.root / "log.jsonl", "distill", told.append) as events:
        _warn_of_size(StageContext(config, empty_world.paths(config), teacher, {}, events), "distill")
    (warning,) = [event["message"] for event in told]
    assert warning == "the student (23,808 parameters) is larger than its teacher (1,000)"


def test_progress_says_where_the_run_is() -> None:
    line = {"step": 4, "total_steps": 8, "train/loss": 1.23456, "train/tok_s_useful": 1000.0}
    fields = progress_fields(line)
    assert fields.pop("measured") == {"train/loss": 1.23456, "train/tok_s_useful": 1000.0}
    assert fields == {"done": 4, "total": 8, "unit": "steps", "loss": 1.2346, "tokens_per_s": 1000.0}
