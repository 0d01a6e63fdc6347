"""vLLM makes rollouts from the weights it was given last, and says what its snapshot costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystill.errors import EnvironmentFault
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.rollouts import vllm_engine
from raystill.train.rollouts.engine import RolloutRequest
from raystill.train.rollouts.snapshot import iter_weights
from raystill.train.rollouts.vllm_engine import VllmRollouts, engine_environment
from raystill.train.stage import DISTILL_STAGE
from raystill.train.student import Student


def test_a_snapshot_is_the_merged_model(world: Any) -> None:
    lora = {"peft": {"lora": {"r": 4, "modules_to_save": ["lm_head", "embed_tokens"]}}}
    run = assemble(world.job(world.config(train={"distillation": lora})), WorkerGroup())
    student = run.state.student
    with torch.no_grad():
        for parameter in run.state.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    found = dict(iter_weights(student))
    before = {name: tensor.clone() for name, tensor in found.items()}
    merged = student.network.merge_and_unload()
    expected = merged.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, expected[name])


def test_an_engine_is_no_member_of_the_group_and_has_its_workers_gpu() -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "PATH": "/bin"}
    own = engine_environment(group, torch.device("cpu"), 3)
    assert own == {"PATH": "/bin", "OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    second = torch.device("cuda", 1)
    seen = {"CUDA_VISIBLE_DEVICES": "4,6"}
    assert engine_environment(seen, second, 1)["CUDA_VISIBLE_DEVICES"] == "6"
    assert engine_environment({}, second, 1)["CUDA_VISIBLE_DEVICES"] == "1"


def test_without_vllm_the_stage_is_refused_before_a_teacher_is_asked(
    empty_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"source": "on_policy", "models": [{"name": "student"}], "rollouts": {"engine": "vllm"}}
    losses = {"kl_weight": 1.0, "ce_weight": 0.0}
    config = empty_world.config(train={"distillation": {"teacher": teacher}}, losses=losses)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    assert DISTILL_STAGE.foresee is not None
    with pytest.raises(EnvironmentFault, match="vLLM, which is not installed") as caught:
        DISTILL_STAGE.foresee(config, empty_world.paths(config))
    assert caught.value.problems[0].where == "train.distillation.teacher.rollouts.engine"


@pytest.mark.vllm
def test_refreshed_weights_are_the_ones_that_write(world: Any, tmp_path: Path) -> None:
    from raystill.train.rollouts.engine import RolloutSampling
    from raystill.train.rollouts.transformers_engine import TransformersRollouts

    wide = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.5,
    }  # vLLM's heads: 32 wide or more
    run = assemble(world.job(world.config(student=wide)), WorkerGroup())
    student: Student = run.state.student
    sampling = RolloutSampling(8, 0.01, 1.0, frozenset({world.chat.turn_end_id}), 128, 8)
    prompts = [run.data.train.tokens(row)[:10] for row in range(4)]
    requests = [RolloutRequest(np.asarray(prompt, np.int32), row) for row, prompt in enumerate(prompts)]
    engine = VllmRollouts(student, sampling, memory_gib=0.1, num_threads=1, scratch=tmp_path / "weights")
    greedy = TransformersRollouts(student, sampling, "float32")
    try:
        engine.refresh()
        first = engine.generate(requests)
        assert [part.tolist() for part in first] == [part.tolist() for part in greedy.generate(requests)]
        with torch.no_grad():
            for parameter in run.state.trainable().values():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        engine.refresh()
        second = engine.generate(requests)
        assert [part.tolist() for part in second] == [part.tolist() for part in greedy.generate(requests)]
        assert [part.tolist() for part in first] != [part.tolist() for part in second]
    finally:
        engine.close()
