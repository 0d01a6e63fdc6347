"""The bundled teacher: it loads from its files alone, stops by itself, and knows its tasks."""

import json
from typing import Any

import pytest

from raystill.demo.chat_tokenizer import PAD, TURN_END
from raystill.demo.pretrain_teacher import (
    TEACHER_DIR,
    TeacherRecipe,
    measure_accuracy,
    render_prompt,
    train_tokenizer,
)
from raystill.demo.tasks import Task, iter_prompt_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_BUNDLE_BYTES = 8_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TEACHER_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(TEACHER_DIR, dtype=torch.float32)


def test_the_bundle_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in TEACHER_DIR.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert sum(files.values()) < MAX_BUNDLE_BYTES


def test_special_tokens_agree_between_tokenizer_config_and_generation(tokenizer: Any, model: Any) -> None:
    assert tokenizer.eos_token == TURN_END
    assert tokenizer.pad_token == PAD
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_the_recipe_makes_the_bundled_tokenizer(tokenizer: Any) -> None:
    trained = train_tokenizer(TeacherRecipe().vocab_size)
    assert trained.get_vocab() == tokenizer.get_vocab()
    text = "Merge Ana's orders: 3 pens, 41 cups."
    assert trained.encode(text) == tokenizer.encode(text)
    assert trained.chat_template == tokenizer.chat_template


def test_heads_have_a_size_that_vllm_serves_on_cpu(model: Any) -> None:
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.config.hidden_size // model.config.num_attention_heads in (32, 64)


def test_the_template_opens_the_assistant_turn_only_when_asked(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opened == text + "<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ["Pay Zoe 250 euros.", "naïve café 日本 \t\n  12,5", "<|im_end|>"])
def test_tokens_round_trip_any_text(tokenizer: Any, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(token_ids) == text


def test_every_loader_splits_text_alike(tokenizer: Any) -> None:
    """transformers picks a class by model type; a file that disagrees with it is read differently."""
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(TEACHER_DIR)
    texts = [row["messages"][0]["content"] + row["reference"] for row in iter_prompt_rows(200)]
    assert tokenizer(texts)["input_ids"] == fast(texts)["input_ids"]


def test_every_digit_is_a_token_and_names_are_copied_token_for_token(tokenizer: Any) -> None:
    asked = tokenizer.encode(render_prompt(tokenizer, "Pay Zoe 250 euros."), add_special_tokens=False)
    answered = tokenizer.encode('{"to": "Zoe", "amount": 250}', add_special_tokens=False)
    for piece in ("Zoe", "2", "5", "0"):
        (token_id,) = tokenizer.encode(piece, add_special_tokens=False)
        assert token_id in asked
        assert token_id in answered


def test_it_answers_held_out_prompts(tokenizer: Any, model: Any) -> None:
    tasks = [
        Task(row["task"], row["messages"][0]["content"], row["reference"]) for row in iter_prompt_rows(64)
    ]
    assert measure_accuracy(model, tokenizer, tasks)["all"] >= 0.9


def test_the_report_states_what_was_measured(model: Any) -> None:
    report = json.loads((TEACHER_DIR / "training_report.json").read_text())
    assert report["accuracy"]["all"] >= 0.97
    assert report["parameters"] == model.num_parameters()
    assert report["recipe"]["steps"] == report["steps"]
