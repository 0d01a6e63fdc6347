"""How the demo teacher was made: a tokenizer and a small Qwen2 model trained on the demo's tasks.

The teacher must be good and unsure at once. A teacher that is always certain has nothing to say
beyond its answers, and then distillation can't beat fine-tuning on them. So training has two
phases: clean answers first, which is where copying and carrying are learned fastest, then answers
in which each value is wrong with probability `slip_rate`. The second phase teaches it calibrated
doubt: its best guess stays right, its samples at temperature 1 err as real teachers' samples do.

The bundle in `teacher/` holds bf16 weights; the accuracy in `training_report.json` was measured
after rounding to bf16, so it is the accuracy of the files.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.demo.chat_tokenizer import train_chat_tokenizer
from raystill.demo.tasks import (
    Task,
    is_correct,
    iter_prompt_rows,
    iter_tasks,
    slip_answer,
)

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

_log = logging.getLogger(__name__)

TEACHER_DIR = Path(__file__).parent / "teacher"

# While merges are learned, capitalised words never join the space or quote before them: then a name
# has the same token in a sentence and in JSON, and can be copied.
WORD_PATTERN = r"[ _]?[a-z]+|[A-Z][a-z]*|[^A-Za-z]+"

IGNORED = -100
# Seeds far from the prompt file's own, and from each other.
TOKENIZER_SEED, TRAINING_SEED, EVALUATION_SEED = 71_000, 72_000, 73_000


@dataclass(frozen=True)
class TeacherRecipe:
    """Everything that decides the teacher's bytes, apart from library versions."""

    vocab_size: int = 768
    hidden_size: int = 192
    intermediate_size: int = 576
    num_hidden_layers: int = 4
    num_attention_heads: int = 6  # head_dim 32: vLLM's CPU attention wants a standard size
    num_key_value_heads: int = 3
    max_position_embeddings: int = 512
    # The usual 0.02 suits models thousands wide. At this width it starts attention nearly uniform,
    # and learning to copy takes several times as many steps.
    initializer_range: float = 0.06
    steps: int = 2_000
    clean_steps: int = 1_000
    slip_rate: float = 0.1
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    evaluation_prompts: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """A rendered conversation; the tokens from `prompt_length` on carry loss."""

    token_ids: list[int]
    prompt_length: int


def train_tokenizer(vocab_size: int) -> Qwen2Tokenizer:
    """The teacher's tokenizer, learned from the demo's tasks."""
    roles = ["system\n", "user\n", "assistant\n"] * 1_000
    tasks = itertools.islice(iter_tasks(TOKENIZER_SEED), 20_000)
    texts = (text for task in tasks for text in (task.prompt, task.reference))
    return train_chat_tokenizer(itertools.chain(roles, texts), vocab_size, merge_within=WORD_PATTERN)


def build_model(recipe: TeacherRecipe, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A freshly initialised model of the recipe's size."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def render_prompt(tokenizer: Qwen2Tokenizer, prompt: str) -> str:
    """The chat template's text up to where the assistant's answer begins."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def encode(tokenizer: Qwen2Tokenizer, prompt: str, answer: str) -> Example:
    """One training example; the EOS after the answer carries loss too."""
    prompt_ids = tokenizer.encode(render_prompt(tokenizer, prompt), add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    eos_token_id = tokenizer.eos_token_id
    assert isinstance(eos_token_id, int)
    return Example([*prompt_ids, *answer_ids, eos_token_id], len(prompt_ids))


def collate(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded inputs and their targets: position t's target is token t + 1 of an answer.

    Right padding under a causal mask needs no attention mask: padding is never looked at by a
    position that carries loss.
    """
    import torch

    length = max(len(example.token_ids) for example in examples)
    input_ids_BT = torch.full((len(examples), length), pad_id)
    target_ids_BT = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        token_ids = torch.tensor(example.token_ids)
        input_ids_BT[row, : len(token_ids)] = token_ids
        start = example.prompt_length
        target_ids_BT[row, start - 1 : len(token_ids) - 1] = token_ids[start:]
    return input_ids_BT, target_ids_BT


def iter_batches(
    recipe: TeacherRecipe, tokenizer: Qwen2Tokenizer, exclude: frozenset[str]
) -> Iterator[list[Example]]:
    """`recipe.steps` batches of fresh tasks, clean ones first, each batch of similar lengths."""
    tasks = iter_tasks(TRAINING_SEED + recipe.seed, exclude)
    rng = random.Random(recipe.seed)
    batches_drawn_together = 10
    for first_step in range(0, recipe.steps, batches_drawn_together):
        rate = 0.0 if first_step < recipe.clean_steps else recipe.slip_rate
        drawn = itertools.islice(tasks, recipe.batch_size * batches_drawn_together)
        examples = [encode(tokenizer, task.prompt, slip_answer(task, rng, rate)) for task in drawn]
        examples.sort(key=lambda example: len(example.token_ids))
        size = recipe.batch_size
        batches = [examples[start : start + size] for start in range(0, len(examples), size)]
        rng.shuffle(batches)
        yield from batches[: recipe.steps - first_step]


def learning_rate_at(recipe: TeacherRecipe, step: int) -> float:
    """Linear warmup, then a cosine down to a twentieth of the peak."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * warmup * (0.05 + 0.95 * cosine)


def train_model(
    model: Qwen2ForCausalLM,
    recipe: TeacherRecipe,
    tokenizer: Qwen2Tokenizer,
    exclude: frozenset[str],
) -> float:
    """Train `model` in place; return the mean loss of the last 50 steps."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    losses: list[float] = []
    model.train()
    for step, examples in enumerate(iter_batches(recipe, tokenizer, exclude)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(recipe, step)
        input_ids_BT, target_ids_BT = collate(examples, pad_id)
        carries_loss_BT = target_ids_BT != IGNORED
        hidden_ND = model.model(input_ids_BT, use_cache=False).last_hidden_state[carries_loss_BT]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden_ND), target_ids_BT[carries_loss_BT])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            _log.info("step %d/%d loss %.4f", step + 1, recipe.steps, sum(losses[-50:]) / 50)
    return sum(losses[-50:]) / len(losses[-50:])


def complete(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: Sequence[str]) -> list[str]:
    """The model's greedy completions of `prompts`, without special tokens."""
    import torch

    model.eval()
    completions: list[str] = []
    for start in range(0, len(prompts), 128):
        texts = [render_prompt(tokenizer, prompt) for prompt in prompts[start : start + 128]]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            output_ids = model.generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=48,
                do_sample=False,
            )
        new_ids = output_ids[:, inputs["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return completions


def measure_accuracy(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, tasks: Sequence[Task]
) -> dict[str, float]:
    """The fraction of greedy completions that are right, overall and per kind of task."""
    completions = complete(model, tokenizer, [task.prompt for task in tasks])
    right: dict[str, list[bool]] = {"all": []}
    for task, completion in zip(tasks, completions, strict=True):
        verdict = is_correct(task.kind, task.reference, completion)
        right["all"].append(verdict)
        right.setdefault(task.kind, []).append(verdict)
    return {kind: sum(verdicts) / len(verdicts) for kind, verdicts in right.items()}


def save_bundle(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, directory: Path) -> None:
    """Write bf16 safetensors, config, generation config, tokenizer and chat template."""
    import torch
    from transformers import GenerationConfig

    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def pretrain_teacher(recipe: TeacherRecipe, directory: Path = TEACHER_DIR) -> dict[str, Any]:
    """Train the teacher, save it, measure the saved files, and write their training report."""
    import torch
    from transformers import AutoModelForCausalLM

    exclude = frozenset(row["messages"][0]["content"] for row in iter_prompt_rows())
    started = time.monotonic()
    tokenizer = train_tokenizer(recipe.vocab_size)
    model = build_model(recipe, tokenizer)
    final_loss = train_model(model, recipe, tokenizer, exclude)
    seconds = time.monotonic() - started
    save_bundle(model, tokenizer, directory)

    saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    held_out = itertools.islice(iter_tasks(EVALUATION_SEED, exclude), recipe.evaluation_prompts)
    report = {
        "recipe": asdict(recipe),
        "parameters": saved.num_parameters(),
        "vocab_size": len(tokenizer),
        "steps": recipe.steps,
        "final_loss": round(final_loss, 4),
        "accuracy": measure_accuracy(saved, tokenizer, list(held_out)),
        "seconds": round(seconds),
    }
    (directory / "training_report.json").write_text(json.dumps(report, indent=2) + "\n")
    _log.info("%s", json.dumps(report, indent=2))
    return report
