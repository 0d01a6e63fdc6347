"""The sides that `checkpoint_kill` kills: `python -m raystill.bench.checkpoint_kill_sides SIDE CONFIG`.

Each trains until it is killed, and goes on from its newest checkpoint when it is started again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raystill.bench.checkpoint_kill import PEER, progress_file
from raystill.config.load import load_config


def run_worker(config_file: Path) -> None:
    """The product's loop, without Ray."""
    from raystill.bench.quality_train import train_in_process
    from raystill.run.paths import RunPaths

    config = load_config([config_file]).config
    train_in_process(config, RunPaths.from_config(config), "distill", os.cpu_count() or 1)


def run_driver(config_file: Path) -> None:
    """The stage as `raystill run` runs it."""
    from raystill.pipeline import run_pipeline

    run_pipeline(load_config([config_file]), until="distill")


def run_hf(config_file: Path) -> None:
    """transformers' Trainer on random tokens, as many per step as ours; a model of the same shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config = load_config([config_file]).config
    student, section = config.student, config.train.distillation
    assert section is not None

    class Progress(TrainerCallback):  # type: ignore[misc]
        """A line for every step."""

        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            with progress_file(config_file).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": state.global_step}) + "\n")

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=student.hidden_size, intermediate_size=student.intermediate_size,
            vocab_size=student.vocab_size,
            num_hidden_layers=student.num_hidden_layers, num_attention_heads=student.num_attention_heads,
            num_key_value_heads=student.num_key_value_heads, tie_word_embeddings=True,
            max_position_embeddings=student.max_position_embeddings,
        )
    )  # fmt: skip
    output = config_file.parent / "hf"
    ids = torch.randint(0, student.vocab_size or 0, (4096, config.training.max_seq_len))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(output), max_steps=section.steps or -1, save_steps=config.training.save_every,
        save_total_limit=1, per_device_train_batch_size=section.per_device_train_batch_size, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_steps=10**6,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Progress()])
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")))


SIDES: dict[str, Callable[[Path], None]] = {"worker": run_worker, "driver": run_driver, PEER: run_hf}

if __name__ == "__main__":
    side, config = sys.argv[1:]
    SIDES[side](Path(config))
