"""Models that teach in process: as good as a store of everything, and silent where nothing differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.errors import ConfigError, DataError
from raystill.losses.teachers import DenseTeacher, MixedTeacher, TopKTeacher
from raystill.train.assembly import TrainRun, assemble
from raystill.train.batches import collate
from raystill.train.group import WorkerGroup
from raystill.train.students.base import load_causal_lm
from raystill.train.teachers.frozen import adapter_off
from raystill.train.teachers.online import OnlineSignals
from raystill.train.teachers.panel import LocalPanel, OnlineTeacher

KD = {"kl_weight": 1.0, "ce_weight": 0.0}
LORA = {"peft": {"lora": {"r": 4, "lora_dropout": 0.5}}}


def online(*names: str, **more: Any) -> dict[str, Any]:
    models = [{"name": name} for name in names]
    teacher = {"source": "online", "models": models, **more.pop("teacher", {})}
    return {"distillation": {"teacher": teacher, **more}}


def checkpoint(world: Any, seed: int) -> str:
    """A teacher of the student's shape with weights of its own."""
    config = world.config(name=f"teacher-{seed}", run={"seed": seed}, training={"steps": 1})
    world.train(config, "sft")
    return str(world.paths(config).model("sft"))


def first_batch(run: TrainRun) -> Any:
    rows = run.source.work(0).plan.micro_batches[0]
    packed = run.settings.packed
    return collate(run.data.train, rows, run.state.student.pad_id, run.state.student.device, packed=packed)


def loss_of(run: TrainRun, batch: Any) -> torch.Tensor:
    student = run.state.student
    student.network.eval()
    hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
    return run.objective(hidden_ND, student.head(), batch).sum


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_teaches_itself_learns_nothing(world: Any, divergence: str) -> None:
    config = world.config(
        train=online("student"),
        losses={**KD, "divergence": divergence},
        training={"steps": 2, "log_every": 1},
    )
    run = assemble(world.job(config), WorkerGroup())
    batch = first_batch(run)
    loss = loss_of(run, batch)
    assert abs(float(loss.detach()) / batch.num_tokens) < 1e-6
    loss.backward()  # type: ignore[no-untyped-call]
    largest = max(float(p.grad.abs().max()) for p in run.state.trainable().values() if p.grad is not None)
    assert largest / batch.num_tokens < 1e-6


def test_a_run_against_itself_leaves_every_weight_where_it_was(world: Any) -> None:
    """AdamW would blow any gradient up to the learning rate, so there must be none: not a bit of one."""
    steps = {"steps": 3, "log_every": 1, "weight_decay": 0.0}
    config = world.config(train=online("student"), losses=KD, training=steps)
    world.train(config)
    start = world.paths(config).initial_model("distill") / "model.safetensors"
    assert world.weights(config) == start.read_bytes()
    assert all(abs(line["train/loss"]) < 1e-6 for line in world.metrics(config) if "train/loss" in line)


def test_the_adapter_off_is_the_base_checkpoint(world: Any) -> None:
    """Self-distillation with LoRA needs no second copy: the base is there, untouched, without dropout."""
    config = world.config(train=online("student", **LORA), losses=KD)
    run = assemble(world.job(config), WorkerGroup())
    student, batch = run.state.student, first_batch(run)
    with torch.no_grad():
        for name, parameter in student.network.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    teacher = run.source.signals(batch, torch.zeros(0), student.head())
    base = load_causal_lm(str(world.paths(config).initial_model("distill")), "sdpa")
    base.eval()
    with torch.no_grad():
        ids_BT = batch.input_ids_BT if batch.row_lengths is None else None
        assert ids_BT is not None
        expected_ND = base.base_model(input_ids=ids_BT)[0].flatten(0, 1)[batch.loss_index_N]
    assert isinstance(teacher, DenseTeacher)
    torch.testing.assert_close(teacher.hidden_ND, expected_ND)
    torch.testing.assert_close(teacher.weight_VD, base.get_output_embeddings().weight)
    with torch.no_grad():
        adapted_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N)
    assert not torch.allclose(adapted_ND, expected_ND)
    assert student.network.training
    assert all(p.requires_grad for n, p in student.network.named_parameters() if "lora_" in n)
    with adapter_off(student):
        assert not student.network.training


def test_the_whole_distribution_equals_a_top_k_of_the_whole_vocabulary(world: Any) -> None:
    config = world.config(train=online(checkpoint(world, 7)), losses=KD, training={"packing": "off"})
    run = assemble(world.job(config), WorkerGroup())
    batch = first_batch(run)
    dense = loss_of(run, batch)
    teacher = run.source.signals(batch, torch.zeros(0), run.state.student.head())
    assert isinstance(teacher, DenseTeacher)
    logprobs_NV = (teacher.hidden_ND @ teacher.weight_VD.T).log_softmax(-1)
    N, V = logprobs_NV.shape
    stored = TopKTeacher(torch.arange(V).expand(N, V).contiguous(), logprobs_NV, torch.full((N,), -torch.inf))
    run.objective.__dict__["signals"] = lambda *_: stored
    torch.testing.assert_close(loss_of(run, batch), dense, rtol=1e-6, atol=1e-6)
    assert float(dense.detach()) > 0


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_the_best_tokens_of_both_sides_come_close_to_the_whole(world: Any, divergence: str) -> None:
    """With k of each side and a tail bucket the loss never exceeds the dense one, and grows with k."""
    name, losses = checkpoint(world, 7), []
    for k in (1, 8, 64, None):
        config = world.config(
            name=f"k{k}",
            train=online(name, teacher={"num_logprobs": k}),
            losses={**KD, "divergence": divergence},
        )
        run = assemble(world.job(config), WorkerGroup())
        losses.append(float(loss_of(run, first_batch(run)).detach()))
    assert losses == sorted(losses)
    assert losses[2] > 0.3 * losses[3] > 0


@pytest.mark.parametrize("weights", ["bfloat16", "4bit"])
def test_a_teachers_weights_may_be_held_in_fewer_bits(world: Any, weights: str) -> None:
    pytest.importorskip("bitsandbytes")
    name, losses = checkpoint(world, 7), []
    for held in ("float32", weights):
        teacher = {"models": [{"name": name, "weights": held}]}
        config = world.config(name=held, train=online(teacher=teacher), losses=KD, training={"steps": 1})
        run = assemble(world.job(config), WorkerGroup())
        losses.append(float(loss_of(run, first_batch(run)).detach()))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.1)


class Fixed:
    """A frozen model whose logits are known."""

    def __init__(self, logits_NV: torch.Tensor) -> None:
        self.logits_NV = logits_NV
        self.asked = 0

    def hidden_states(self, batch: Any) -> torch.Tensor:
        self.asked += 1
        return self.logits_NV

    def head(self) -> Any:
        from raystill.train.objective import Head

        return Head(torch.eye(self.logits_NV.shape[1]), None)


def test_several_teachers_are_routed_by_source_and_mixed_as_probabilities(world: Any) -> None:
    run = assemble(world.job(world.config(train=online("student"), losses=KD)), WorkerGroup())
    batch = first_batch(run)
    counts = batch.row_num_targets
    assert sum(counts) == batch.num_tokens
    assert set(batch.row_sources) == {"test"}
    sources = tuple("code" if place % 2 else "chat" for place in range(len(counts)))
    batch = replace(batch, row_sources=sources)
    V = run.state.student.vocab_size
    first, second, coder = (Fixed(torch.randn(batch.num_tokens, V)) for _ in range(3))
    panel = LocalPanel(
        [
            OnlineTeacher("a", first, 3.0),
            OnlineTeacher("b", second, 1.0, frozenset({"chat"})),
            OnlineTeacher("c", coder, 1.0, frozenset({"elsewhere"})),
        ]
    )
    signals = OnlineSignals(
        panel,
        run.planner,
        run.data.train,
        0,
        num_logprobs=None,
    )
    head = run.state.student.head()
    teacher = signals.signals(batch, torch.zeros(0), head)
    assert isinstance(teacher, MixedTeacher)
    assert coder.asked == 0
    hidden_ND = torch.randn(batch.num_tokens, head.weight_VD.shape[1])
    p, q = first.logits_NV.softmax(-1), second.logits_NV.softmax(-1)
    chat_N1 = torch.tensor([source == "chat" for source in sources]).repeat_interleave(torch.tensor(counts))[
        :, None
    ]
    mixed_NV = torch.where(chat_N1, 0.75 * p + 0.25 * q, p)
    student_NV = (hidden_ND @ head.weight_VD.T).log_softmax(-1)
    expected = (mixed_NV * (mixed_NV.log() - student_NV)).sum()
    from raystill.losses.chunked import chunked_loss

    found = chunked_loss(
        hidden_ND, head.weight_VD, batch.target_ids_N, run.settings.terms.last, teacher=teacher
    )
    torch.testing.assert_close(found.sum, expected, rtol=1e-5, atol=1e-4)


def test_a_row_that_no_teacher_is_for_is_named(world: Any) -> None:
    teacher = {"models": [{"name": "student", "sources": ["elsewhere"]}]}
    run = assemble(world.job(world.config(train=online(teacher=teacher), losses=KD)), WorkerGroup())
    with pytest.raises(ConfigError, match="'test'"):
        loss_of(run, first_batch(run))


def test_another_vocabulary_is_refused_before_step_one(
    world: Any, tokenizer_maker: Any, tmp_path: Path
) -> None:
    name = checkpoint(world, 7)
    tokenizer_maker(("<extra>",)).save_pretrained(name)
    with pytest.raises(DataError, match="token by token"):
        assemble(world.job(world.config(train=online(name), losses=KD)), WorkerGroup())


def test_a_teacher_with_too_short_a_context_is_refused_before_step_one(world: Any) -> None:
    """Also where it is what the student writes that would be too long."""
    short = {"max_position_embeddings": 48}
    config = world.config(name="short", student=short, training={"steps": 1})
    world.train(config, "sft")
    name = str(world.paths(config).model("sft"))
    assemble(
        world.job(world.config(train=online(name), losses=KD, training={"max_seq_len": 48})), WorkerGroup()
    )
    with pytest.raises(ConfigError, match=r"has learnt 48 positions and is to judge rows of \d+ tokens"):
        rollouts = {"source": "on_policy", "rollouts": {"max_new_tokens": 100}}
        assemble(world.job(world.config(train=online(name, teacher=rollouts), losses=KD)), WorkerGroup())


def test_online_needs_no_stored_signals(empty_world: Any, rows: Any, store_writer: Any) -> None:
    plain = [replace(row, signal=None) for row in rows]
    store_writer(empty_world.root / "store", empty_world.chat, plain)
    config = empty_world.config(
        train=online("student"), losses=KD, teacher={"signals": {"num_logprobs": 0}}, training={"steps": 2}
    )
    counts = empty_world.train(config)["counts"]
    assert counts["steps"] == 2 and counts["teacher_passes"] >= 2
