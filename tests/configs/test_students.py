"""The students that configs/ describe: built on the meta device, and as large as their comments say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raystill.cluster.model_size import student_parameters
from raystill.config.load import load_config
from raystill.config.support import require_supported
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.train.students.fresh import build_fresh
from raystill.train.students.shrink import base_shape, wanted_shape

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
# Parameters that the keys build, whatever the name says.
SIZES = {
    "worker_9b": 8_047_038_464,
    "judge_4b": 1_590_790_144,
    "drafter_4b": 1_590_790_144,
    "student_7b_gqa": 6_189_714_944,
    "student_8b_gqa": 8_047_038_464,
    "student_9b_gqa": 9_020_149_760,
}
# Names that say another size than the keys build, by more than a tenth.
MISNAMED = {"worker_9b", "judge_4b", "drafter_4b", "student_7b_gqa"}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return load_chat_format(str(ROOT / "platform" / "raystill" / "demo" / "teacher"))


@pytest.mark.parametrize("name", SIZES)
def test_each_builds_the_model_that_its_comment_says(name: str, chat: ChatFormat) -> None:
    student = load_config([CONFIGS / f"{name}.yaml"]).config.student
    with torch.device("meta"):
        model = build_fresh(student, chat, "sdpa")
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == SIZES[name] == student_parameters(student, None)
    shown = f"{built / 1e9:.2f} B"
    assert shown in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    row = next(line for line in (CONFIGS / "README.md").read_text().splitlines() if f"`{name}.yaml`" in line)
    assert shown in row


@pytest.mark.parametrize("name", SIZES)
def test_a_name_that_is_wrong_is_called_so(name: str) -> None:
    said = float(name.split("_")[1].removesuffix("b"))
    assert (abs(SIZES[name] / 1e9 / said - 1) > 0.1) is (name in MISNAMED)
    if name in MISNAMED:
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"name says {said:g} B" in text


@pytest.mark.parametrize("name", SIZES)
def test_each_runs_under_the_recipe(name: str) -> None:
    loaded = load_config([CONFIGS / f"{name}.yaml", CONFIGS / "kd_recipe.yaml"])
    require_supported(loaded, ["prepare", "generate", "score", "distill", "evaluate", "export"])


def test_the_assistants_student_can_be_cut_from_its_base() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    student = load_config([CONFIGS / "assistant.yaml"]).config.student
    base = AutoConfig.for_model(
        "qwen2",
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    with torch.device("meta"):
        own = base_shape(AutoModelForCausalLM.from_config(base))
    shape = wanted_shape(own, student, base)
    assert (shape.heads, shape.groups, shape.head_dim, shape.layers) == (20, 4, 64, 24)
