"""What stages ask for, and what is refused because no cluster of this kind can ever give it."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.cluster.demand import Capacity, find_unmet, stage_demand
from raystill.config.schema import Config

FOUR = Capacity({"CPU": 32.0, "GPU": 4.0}, [{"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}])


def make(**sections: Any) -> Config:
    return Config.model_validate({"teacher": {"open": {"model": {"name": "t"}}}} | sections)


def test_stages_say_what_they_ask_for() -> None:
    vllm = {"open": {"model": {"name": "t"}}, "vllm": {"num_engines": [1, 4], "tensor_parallel_size": 2}}
    config = make(teacher=vllm, training={"num_workers": 2, "cpus_per_worker": 3}, train={"sft": {}})
    generate = stage_demand(config, "generate", "cuda")
    assert generate is not None and generate.describe() == "1 to 4 engines, each 2 GPU"
    train = stage_demand(config, "sft", "cuda")
    assert train is not None and train.describe() == "2 training workers, each 3 CPU, 1 GPU"
    assert stage_demand(config, "prepare", "cuda") is None
    closed = make(teacher={"closed": {"model": {"name": "gpt"}}})
    assert stage_demand(closed, "generate", "cpu") is None


def test_teachers_beside_a_worker_are_counted() -> None:
    """I33."""
    teacher = {"source": "online", "worker": {"num_cpus": 3}}
    config = make(train={"distillation": {"teacher": teacher}}, training={"num_workers": 2})
    demand = stage_demand(config, "distill", "cuda")
    assert demand is not None and demand.beside == {"CPU": 3.0, "GPU": 1.0}
    assert demand.describe().endswith("each 1 CPU, 1 GPU, and 3 CPU and 1 GPU for its teachers")
    assert find_unmet(demand, FOUR) is None
    problem = find_unmet(demand, Capacity({"CPU": 32.0, "GPU": 3.0}))
    assert problem is not None and "4 GPU, and Ray has 3 GPU" in problem.what
    on_cpu = stage_demand(config, "distill", "cpu")
    assert on_cpu is not None and on_cpu.beside == {"CPU": 3.0}


def test_workers_on_labelled_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    labels = {"teacher_labels": {"market-type": "spot"}, "training_labels": {"market-type": "on-demand"}}
    teacher = {"source": "online", "worker": {"num_cpus": 3}}
    train = {"sft": {}, "distillation": {"teacher": teacher}}
    config = make(cluster={"address": "head:6379", **labels}, train=train)
    places = {stage: stage_demand(config, stage, "cpu") for stage in ("generate", "sft", "distill")}
    found = {stage: demand.labels["market-type"] for stage, demand in places.items() if demand is not None}
    assert found == {"generate": "spot", "sft": "on-demand", "distill": "on-demand"}
    distill = places["distill"]
    assert distill is not None and distill.describe().endswith("on nodes with market-type: on-demand")
    # Its teachers' process may run on nodes without the label, which this is not the capacity of.
    assert distill.beside and find_unmet(distill, Capacity({"CPU": 1.0}, [{"CPU": 1.0}])) is None
    assert find_unmet(distill, Capacity({}, [])) is not None
    alone = make(cluster=labels, train=train)
    local = stage_demand(alone, "sft", "cpu")
    assert local is not None and local.labels == {}


@pytest.mark.parametrize(
    ("vllm", "message"),
    [
        ({"num_engines": [1, 100]}, None),  # grows as far as it can
        ({"num_engines": 5}, "5 GPU, and Ray has 4 GPU"),
        ({"tensor_parallel_size": 2}, "no node has that much"),
    ],
)
def test_what_a_cluster_can_never_have_is_a_problem(vllm: dict[str, Any], message: str | None) -> None:
    """I33."""
    config = make(teacher={"open": {"model": {"name": "t"}}, "vllm": vllm})
    demand = stage_demand(config, "generate", "cuda")
    assert demand is not None
    problem = find_unmet(demand, FOUR)
    assert (problem is None) == (message is None)
    if problem is not None and message is not None:
        assert message in problem.what and problem.where == "teacher.vllm.num_engines"
