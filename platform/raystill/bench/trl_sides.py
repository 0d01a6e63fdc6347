"""TRL's trainers on the benchmarks' models and rows: the peers of `sft` and `kd-step`.

Steps are timed from the end of the second to the end of the last one, by a callback; tokens are counted in
the batches that the collator made. DistillationTrainer trains on what the student generates: its generation
is replaced by rows that lie ready, which leaves its training part.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from raystill.bench.own_process import peak_memory_mb
from raystill.bench.training_models import (
    BATCH_ROWS,
    LENGTH,
    PROMPT_LENGTH,
    build_model,
    build_tokenizer,
)
from raystill.bench.training_sides import WARM_STEPS, Spec, make_rows

_IGNORED = -100


def run_trl(spec: Spec) -> dict[str, float]:
    """`trl-packed-*` and `trl-default-*` (SFTTrainer), `gkd-*`, `distillation-*`; * is bf16 or fp32."""
    if spec.side.startswith("trl-"):
        return _run_sft(spec)
    return _run_gkd(spec) if spec.side.startswith("gkd") else _run_distillation(spec)


def _common(spec: Spec, scratch: str) -> dict[str, Any]:
    return {
        "output_dir": scratch,
        "per_device_train_batch_size": BATCH_ROWS,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "max_steps": spec.steps + WARM_STEPS,
        "use_cpu": True,
        "bf16": spec.is_bfloat16,
        "gradient_checkpointing": spec.side.startswith("trl-default"),
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "optim": "adamw_torch_fused",
    }


def _run_sft(spec: Spec) -> dict[str, float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = build_model(spec.student)
    rows = make_rows(spec, model.config.vocab_size)
    packing = spec.side.startswith("trl-packed")
    # Packed steps take more rows: enough of them that no row is seen twice.
    dataset = Dataset.from_dict({"input_ids": rows * (3 if packing else 1)})
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(**_common(spec, scratch), packing=packing, max_length=LENGTH),
            train_dataset=dataset,
            processing_class=build_tokenizer(model.config.vocab_size),
        )
        return _time(trainer, spec)


def _run_gkd(spec: Spec) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student = build_model(spec.student)
    rows = make_rows(spec, student.config.vocab_size)

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = torch.tensor([item["input_ids"] for item in items])
        labels = input_ids.clone()
        labels[:, :PROMPT_LENGTH] = _IGNORED
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": torch.ones_like(input_ids),
            "prompts": input_ids[:, :PROMPT_LENGTH],
            "prompt_attention_mask": torch.ones_like(input_ids[:, :PROMPT_LENGTH]),
        }

    with tempfile.TemporaryDirectory() as scratch:
        trainer = GKDTrainer(
            student,
            build_model(spec.teacher),
            args=GKDConfig(**_common(spec, scratch), lmbda=0.0, beta=0.0, max_length=LENGTH),
            data_collator=collate,
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            processing_class=build_tokenizer(student.config.vocab_size),
        )
        return _time(trainer, spec)


def _run_distillation(spec: Spec) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    student = build_model(spec.student)
    rows = torch.tensor(make_rows(spec, student.config.vocab_size))
    ready = iter(torch.split(rows, BATCH_ROWS))

    class WithoutGeneration(DistillationTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
            ids = next(ready)
            prompt_ids, completion_ids = ids[:, :PROMPT_LENGTH], ids[:, PROMPT_LENGTH:]
            return {
                "prompt_ids": prompt_ids,
                "prompt_mask": torch.ones_like(prompt_ids),
                "completion_ids": completion_ids,
                "completion_mask": torch.ones_like(completion_ids),
                "num_items_in_batch": torch.tensor(float(completion_ids.numel())),
            }

    with tempfile.TemporaryDirectory() as scratch:
        trainer = WithoutGeneration(
            student,
            build_model(spec.teacher),
            args=DistillationConfig(
                **_common(spec, scratch), beta=0.0, max_completion_length=LENGTH - PROMPT_LENGTH
            ),
            train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * spec.num_rows}),
            processing_class=build_tokenizer(student.config.vocab_size),
        )
        return _time(trainer, spec, tokens_per_step=BATCH_ROWS * LENGTH)


def _time(trainer: Any, spec: Spec, tokens_per_step: int | None = None) -> dict[str, float]:
    from transformers import TrainerCallback

    ends: list[float] = []
    tokens: list[int] = []
    collate = trainer.data_collator

    def counting(items: list[dict[str, Any]]) -> Any:
        batch = collate(items)
        tokens.append(int((batch["input_ids"] != 0).sum()))
        return batch

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    if tokens_per_step is None:
        trainer.data_collator = counting
    trainer.add_callback(Ends())
    trainer.train()
    counted = [tokens_per_step] * len(ends) if tokens_per_step is not None else tokens
    timed = sum(counted[WARM_STEPS : len(ends)])
    return {"tokens_per_s": timed / (ends[-1] - ends[WARM_STEPS - 1]), "peak_mb": peak_memory_mb()}
