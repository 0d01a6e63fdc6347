"""Values that can't both be meant are refused at load, with both paths and a way out."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from raystill.config import engine
from raystill.config.load import load_config
from raystill.errors import ConfigError

FRESH = [
    "student.hidden_size=64", "student.intermediate_size=128",
    "student.num_hidden_layers=2", "student.num_attention_heads=4",
]  # fmt: skip
OPEN = ["teacher.open.model.name=some/teacher"]
KD = [*FRESH, "train.distillation={}"]
CLOSED = ["teacher.closed.model.name=some-api"]
ASSISTANT = ["assistant.model.name=some/assistant"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def problems_of(*overrides: str) -> list[str]:
    try:
        load_config([], list(overrides))
    except ConfigError as error:
        assert error.exit_code == 2
        for problem in error.problems:
            assert problem.where, problem
            assert problem.fix, problem
        return [str(problem) for problem in error.problems]
    return []


@pytest.fixture
def vllm_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.fixture
def vllm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("overrides", "paths"),
    [
        ([*KD, "teacher.signals.num_logprobs=0"],
         ["train.distillation.knowledgedistillation.weight", "teacher.signals.num_logprobs"]),
        ([*KD, "teacher.signals.num_logprobs=0", "losses.kl_weight=0.5"],
         ["losses.kl_weight", "teacher.signals.num_logprobs"]),
        ([*KD, "losses.num_logprobs=30"], ["losses.num_logprobs", "teacher.signals.num_logprobs"]),
        ([*KD, "losses.kl_weight=0", "losses.ce_weight=0"], ["losses.kl_weight", "losses.ce_weight"]),
        ([*KD, "train.distillation.knowledgedistillation.weight=0", "losses.ce_weight=0"],
         ["losses.kl_weight", "losses.ce_weight"]),
        ([*KD, "train.distillation.knowledgedistillation.weight=0.3", "losses.kl_weight=0.5",
          "losses.ce_weight=0.5"],
         ["train.distillation.knowledgedistillation.weight", "losses.kl_weight", "losses.ce_weight"]),
        ([*KD, "train.distillation.knowledgedistillation.loss.reduction=sum"], ["loss.reduction"]),
        ([*KD, "train.distillation.knowledgedistillation.loss.reduction=none"], ["loss.reduction"]),
        ([*FRESH, "train.sft.fp16=true", "train.sft.bfloat16=true"],
         ["train.sft.fp16", "train.sft.bfloat16"]),
        ([*KD, "train.distillation.fp16=true", "train.distillation.bf16=true"],
         ["train.distillation.fp16", "train.distillation.bf16"]),
        ([*FRESH, "train.sft.fp16=true", "device.type=cpu"], ["train.sft.fp16", "device.type"]),
        ([*KD, "train.distillation.fp16=true", "device.type=cpu"],
         ["train.distillation.fp16", "device.type"]),
        ([*FRESH, "student.hidden_size=66"], ["student.hidden_size", "student.num_attention_heads"]),
        ([*FRESH, "student.hidden_size=60"], ["student.hidden_size", "student.num_attention_heads"]),
        ([*FRESH, "student.num_key_value_heads=3"],
         ["student.num_attention_heads", "student.num_key_value_heads"]),
        ([*FRESH, "student.max_position_embeddings=256"],
         ["training.max_seq_len", "student.max_position_embeddings"]),
        (["student.init=fresh"], ["student.init", "student.hidden_size"]),
        (["student.hidden_size=64"], ["student.hidden_size", "student.num_attention_heads"]),
        (["student.init=base"], ["student.init", "student.base_model_name"]),
        ([*FRESH, "student.init=shrink"], ["student.init", "student.base_model_name"]),
        ([*ASSISTANT, "train.sft={}", "assistant.quantization.load_in_4bit=true"],
         ["assistant.quantization.load_in_4bit", "train.sft.peft.lora"]),
        ([*OPEN, "teacher.open.pipeline.temperature=0"],
         ["teacher.open.pipeline.do_sample", "teacher.open.pipeline.temperature"]),
        ([*OPEN, "teacher.engine=vllm", "teacher.vllm.max_model_len=512"],
         ["teacher.open.pipeline.max_new_tokens", "teacher.vllm.max_model_len"]),
        ([*OPEN, "teacher.engine=openai"], ["teacher.engine", "teacher.closed"]),
        ([*CLOSED, "teacher.engine=vllm"], ["teacher.engine", "teacher.closed"]),
        (["teacher.engine=vllm"], ["teacher.engine", "teacher.open"]),
        (["teacher.engine=transformers"], ["teacher.engine", "teacher.open"]),
        ([*OPEN, "teacher.open.model.trust_remote_code=true"],
         ["teacher.open.model.trust_remote_code", "teacher.open.model.revision"]),
        ([*OPEN, "teacher.open.model.trust_remote_code=true", "teacher.open.model.revision=main"],
         ["teacher.open.model.trust_remote_code", "teacher.open.model.revision"]),
        ([*KD, "train.distillation.init=sft"], ["train.distillation.init", "train.sft"]),
        ([*KD, *ASSISTANT, "train.sft={}", "train.distillation.init=sft"],
         ["train.distillation.init", "assistant"]),
        (["prompts.eval_size=5", "prompts.eval_fraction=0.1"],
         ["prompts.eval_size", "prompts.eval_fraction"]),
        ([*OPEN, "teacher.engine=vllm", "teacher.open.tokenizer.padding_side=right"],
         ["teacher.open.tokenizer.padding_side", "teacher.engine"]),
        ([*OPEN, "teacher.engine=vllm", "teacher.open.tokenizer.padding=false"],
         ["teacher.open.tokenizer.padding", "teacher.engine"]),
        ([*OPEN, "teacher.engine=vllm", "teacher.open.model.attn_implementation=eager"],
         ["teacher.open.model.attn_implementation", "teacher.engine"]),
        ([*OPEN, "teacher.engine=transformers", "teacher.open.tokenizer.padding_side=right"],
         ["teacher.open.tokenizer.padding_side", "teacher.open.tokenizer.padding"]),
        ([*OPEN, "teacher.base.num_samples=2", "teacher.open.pipeline.do_sample=false"],
         ["teacher.base.num_samples", "teacher.open.pipeline.do_sample"]),
        ([*CLOSED, "teacher.base.num_samples=2", "teacher.closed.pipeline.temperature=0"],
         ["teacher.base.num_samples", "teacher.closed.pipeline.temperature"]),
        ([*OPEN, "teacher.engine=transformers", "teacher.base.tool_schema=configs/tool_schema.json"],
         ["teacher.base.tool_schema", "teacher.engine"]),
        ([*OPEN, "teacher.engine=fake", "teacher.base.tool_schema=configs/tool_schema.json"],
         ["teacher.base.tool_schema", "teacher.engine"]),
        ([*OPEN, "teacher.engine=vllm", "teacher.vllm.num_engines=[4,2]"], ["teacher.vllm.num_engines"]),
        ([*OPEN, "training.num_workers=[4,2]"], ["training.num_workers"]),
        ([*OPEN, "teacher.open.data.download={size: 64k, path: here.jsonl}"],
         ["teacher.open.data.download.size", "teacher.open.data.download.path"]),
        ([*OPEN, "teacher.engine=transformers", "teacher.vllm.max_num_seqs=4"],
         ["teacher.vllm", "teacher.engine"]),
        ([*CLOSED, "teacher.engine=openai", "teacher.vllm.max_num_seqs=4"],
         ["teacher.vllm", "teacher.engine"]),
    ],
)  # fmt: skip
def test_contradictions_name_every_path(overrides: list[str], paths: list[str]) -> None:
    """I6, I34: also what the named device can't do."""
    found = problems_of(*overrides)
    assert len(found) == 1, found
    where = found[0].partition("where:")[2]
    for path in paths:
        assert path in where


@pytest.mark.parametrize(
    "overrides",
    [
        [*KD, "teacher.signals.num_logprobs=0", "losses.kl_weight=0"],
        [*KD, "teacher.signals.num_logprobs=0", "train.distillation.knowledgedistillation.weight=0"],
        [*KD, "losses.num_logprobs=20"],
        [*KD, "losses.kd_temperature=4"],
        [*KD, "train.distillation.knowledgedistillation.weight=0.7", "losses.kl_weight=0.7",
         "losses.ce_weight=0.3"],
        [*KD, "losses.kl_weight=1", "losses.ce_weight=1"],
        ["teacher.signals.num_logprobs=0"],
        [*FRESH, "student.num_key_value_heads=2"],
        [*FRESH, "student.max_position_embeddings=256", "training.max_seq_len=256"],
        [*FRESH, "training.steps=10", "training.save_every=100"],
        ["student.base_model_name=some/base"],
        [*ASSISTANT, "train.sft={}", "assistant.quantization.load_in_4bit=true", "assistant.lora={}"],
        [*ASSISTANT, "train.sft.peft.lora={}", "assistant.quantization.load_in_4bit=true"],
        [*OPEN, "teacher.open.pipeline.temperature=0", "teacher.open.pipeline.do_sample=false"],
        [*CLOSED, "teacher.closed.pipeline.temperature=0"],
        [*OPEN, *CLOSED],
        [*OPEN, *CLOSED, "teacher.engine=openai", "teacher.vllm.max_num_seqs=8"],
        [*OPEN, "teacher.open.model.trust_remote_code=true", f"teacher.open.model.revision={COMMIT}"],
        ["teacher.open.model.name=./local", "teacher.open.model.trust_remote_code=true"],
        [*KD, "train.sft={}", "train.distillation.init=sft"],
        [*OPEN, "teacher.engine=vllm", "teacher.open.pipeline.use_cache=false"],
        [*OPEN, "teacher.engine=vllm", "teacher.open.tokenizer.padding=true"],  # the default
        [*OPEN, "teacher.engine=transformers", "teacher.open.tokenizer.padding_side=right",
         "teacher.open.tokenizer.padding=false"],
    ],
)  # fmt: skip
def test_what_goes_together_is_accepted(overrides: list[str]) -> None:
    assert problems_of(*overrides) == []


@pytest.mark.usefixtures("vllm_is_installed")
def test_with_auto_the_engine_that_is_picked_decides() -> None:
    (problem,) = problems_of(*OPEN, "teacher.open.tokenizer.padding=false")
    assert "auto, which is vllm on this machine" in problem
    assert "teacher.engine: transformers" in problem


@pytest.mark.usefixtures("vllm_is_missing")
def test_with_auto_one_file_serves_machines_with_and_without_vllm() -> None:
    assert problems_of(*OPEN, "teacher.vllm.kv_cache_gib=0.5") == []
    assert problems_of(*OPEN, "teacher.open.tokenizer.padding=false") == []


def test_places_are_files_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("teacher:\n  signals: {num_logprobs: 5}\nlosses:\n  num_logprobs: 9\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config([path], KD)
    assert caught.value.problems[0].where == (
        f"{path}:4:17 (losses.num_logprobs); {path}:2:27 (teacher.signals.num_logprobs)"
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["curate.best_of_n=judge"], "there is no `curate.judge`"),
        (["curate.best_of_n=logprob", "teacher.signals.num_logprobs=0"], "no row has logprobs"),
        (["curate.tool_calls={}"], "which tools there are"),
        (["curate.finish_reasons=[stop, length]"], "leaves them out of training"),
        (["curate.length={min_tokens: 9, max_tokens: 3}"], "is above"),
        (["curate.mixture.sources=[{source: a, weight: 1.0}, {source: a, weight: 2.0}]"], "two weights"),
    ],
)
def test_curation_that_can_not_be(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config([], overrides)


def test_a_range_of_workers_takes_nodes_as_they_come() -> None:
    labels = "cluster.training_labels={market-type: on-demand}"
    assert load_config([], [labels, "training.num_workers=2"]).config.cluster.training_labels is not None
    with pytest.raises(ConfigError, match="counts nodes of every kind"):
        load_config([], [labels, "training.num_workers=[1, 2]"])
