"""What users get wrong: each message says what, where and how to repair it, and the exit code is 2."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from raystill.config.load import load_config
from raystill.errors import ConfigError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{old}'] * 10)}]\n" for old, name in pairwise("abcdefghi")
)
OPEN = "teacher: {open: {model: {name: a/b}}}\n"
SECRET = "sk-" + "abcdefghijkl1234"

# id, the file, overrides; what the message holds, where it points, what the repair holds.
CASES: list[tuple[str, str, list[str], str, str, str]] = [
    ("I1 syntax", "run:\n  name: a: b\n", [], "2 |   name: a: b", ":2:10", "quotes"),
    ("I1 tab", "run:\n\tname: x\n", [], "2 | →name: x", ":2:1", "spaces"),
    ("I2 unknown key", "train: {sft: {learning_rte: 1}}\n", [], "learning_rte", ":1:15",
     "train.sft.learning_rate"),
    ("I2 unknown section", "trainning: {steps: 1}\n", [], "trainning", ":1:1", "training"),
    ("I2 right key, wrong section", "run: {temperature: 1}\n", [], "run.temperature", ":1:7",
     "teacher.open.pipeline.temperature"),
    ("I2 unknown in --set", "", ["training.stepz=1"], "training.stepz", "--set",
     "training.steps"),
    ("I3 text for a number", "training: {steps: 'three'}\n", [], '"three"', ":1:19", "number"),
    ("I3 no for a boolean", "cuda: {allow_tf32: no}\n", [], '"no"', ":1:20", "write false"),
    ("I3 off for a boolean", "cuda: {allow_tf32: off}\n", [], '"off"', ":1:20", "write false"),
    ("I3 number for text", "run: {name: 5}\n", [], "`run.name` is 5", ":1:13", "in quotes"),
    ("I3 fraction of a step", "training: {steps: 1.5}\n", [], "1.5", ":1:19", "steps"),
    ("I3 float for a count", "training: {steps: 1e5}\n", [], "100000.0", ":1:19", "100000"),
    ("I4 duplicate key", "run: {name: a}\nrun: {name: b}\n", [], "given twice", ":2:1", "keep one"),
    ("I5 bomb", BOMB, [], "aliases are expanded", ":", "configuration"),
    ("I5 object tag", "run: !!python/object/new:os.system [id]\n", [], "!!python/object/new:os", ":1:6",
     "plain values"),
    ("I5 large file", "#" * (3 << 20), [], "2 MiB", "bad.yaml", "prompts.sources"),
    ("I6 4-bit and full fine-tuning",
     "assistant: {model: {name: a}, quantization: {load_in_4bit: true}}\ntrain: {sft: {}}\n", [],
     "train.sft.peft.lora", ":1:60 (assistant.quantization.load_in_4bit)", "lora"),
    ("I6 API with vLLM's keys",
     "teacher: {closed: {model: {name: a}}, engine: openai, vllm: {num_engines: 2}}\n",
     [], "teacher.vllm", ":1:75", "remove"),
    ("I8 secret", f"run: {{name: {SECRET}}}\n", [], "literal secret", ":1:13", "environment"),
    ("I12 remote code", "teacher: {open: {model: {name: a/b, trust_remote_code: true}}}\n", [],
     "trust_remote_code", ":1:56", "revision"),
    ("I28 more than are kept", OPEN, ["teacher.signals.num_logprobs=500"], "<= 256", "--set", "K: logprobs"),
    ("I30 k", OPEN, ["teacher.signals.num_logprobs=-1"], "-1", "--set", "K: logprobs"),
    ("I30 temperature", OPEN, ["teacher.open.pipeline.temperature=-0.5"], ">= 0 and <= 100", "--set",
     "temperature"),
    ("I30 greedy by temperature", OPEN, ["teacher.open.pipeline.temperature=0"], "temperature 0", "--set",
     "do_sample: false"),
    ("I30 top_p", OPEN, ["teacher.open.pipeline.top_p=0"], "> 0 and <= 1", "--set", "Nucleus"),
    ("I30 KD temperature", "", ["losses.kd_temperature=0"], "> 0 and <= 100", "--set", "KD temperature"),
    ("I30 beta", "", ["losses.beta=1.5"], "> 0 and < 1", "--set", "jsd"),
    ("I30 mixture weights",
     "teacher: {open: {model: {name: a/b}}}\nprompts: {sources: [{path: a, weight: 0}]}\n", [],
     "weight", ":2:", "weight"),
    ("I30 weights",
     "student: {base_model_name: a}\ntrain: {distillation: {}}\nlosses: {kl_weight: 0, ce_weight: 0}\n",
     [], "all weights", ":3:", "weight"),
    ("I30 weight", "", ["losses.kl_weight=-1"], ">= 0", "--set", "Weight"),
    ("I30 not finite", "training: {weight_decay: .inf}\n", [], "Infinity", ":1:26", "AdamW"),
    *[(f"I37 run.name {name!r}", "", [f"run.name={name!r}"], "letters, digits", "--set run.name", "Name")
      for name in (
          "../up", "/abs", "a/b", "a;rm -rf x", "..", ".hidden", "", "a b", "x" * 101, "a\\b", "é", "a\n")],
    ("I37 NUL", 'run: {dir: "a\\0b"}\n', [], "U+0000", ":1:12", "delete"),
    ("I37 long part", "", [f"run.dir={'x' * 256}"], "at most 255", "--set run.dir", "Directory"),
    ("I42 no hub id", "student: {repo: 'https://x/y'}\n", [], "https://x/y", ":1:17", "owner/name"),
    ("I42 not in batches", "train: {sft: {dataset: {train_batched: false}}}\n", [], "allowed: only true",
     ":1:40", "the same rows"),
    ("I42 masks", "train: {sft: {tokenizer: {mlm: true}}}\n", [], "allowed: only false", ":1:32", "no masks"),
    ("I42 type of weights", "export: {dtype: int8}\n", [], "float32, bfloat16, float16", ":1:17", "exported"),
    ("empty path", "", ["run.dir=''"], "at most 255", "--set run.dir", "Directory"),
    ("null section", "training:\n", [], "null", ":1:10", "lines below"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "overrides", "what", "where", "fix"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_each_mistake_gets_a_message_that_helps(
    tmp_path: Path, text: str, overrides: list[str], what: str, where: str, fix: str
) -> None:
    """I1, I2, I3, I4, I5, I6, I8, I12, I28, I30, I37, I42: each case is named after its input."""
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError) as caught:
        load_config([path], overrides)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 1, caught.value
    problem = caught.value.problems[0]
    assert what in problem.what
    assert where in problem.where
    assert fix in problem.fix
    assert SECRET not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "5e-5", "2.0e-4", ".0001", "1e-04"])
def test_learning_rates_are_numbers_however_written(tmp_path: Path, text: str) -> None:
    """I3."""
    path = tmp_path / "ok.yaml"
    path.write_text(
        f"student: {{base_model_name: a}}\ntrain: {{sft: {{learning_rate: {text}}}}}\n", encoding="utf-8"
    )
    section = load_config([path]).config.train.sft
    assert section is not None
    assert section.learning_rate == float(text)


def test_no_is_a_word_where_words_are_allowed(tmp_path: Path) -> None:
    """I3."""
    path = tmp_path / "ok.yaml"
    path.write_text("student: {base_model_name: a}\ntrain: {sft: {eval_strategy: no}}\n", encoding="utf-8")
    section = load_config([path]).config.train.sft
    assert section is not None
    assert section.eval_strategy == "no"
