"""A finished run, realistic in every file, without having trained anything: for the report's tests.

Prompts, store, rejects, metrics, results, completions and the export's verdict go through the writers that
stages use; only what models said is made up, from one seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.config.schema import Config
from raystill.evaluate.agreement import RowAgreement
from raystill.evaluate.completions import save_completions
from raystill.evaluate.gap import (
    ModelOutputs,
    build_gaps,
    build_row,
    choose_primary_metric,
    count_tasks,
    score_all,
)
from raystill.evaluate.results import Results, RowKey
from raystill.run.manifest import Manifest, fingerprint_of, installed_packages, save_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import write_json
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.records import Reject, TeacherRow, TopKSignal
from raystill.store.requests import Request, save_requests
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

NUM_LOGPROBS = 20
CITIES = ("Athens", "Berlin", "Cairo", "Dublin", "Kyoto", "Lisbon", "Oslo", "Quito", "Seoul", "Vienna")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SECONDS: dict[StageName, float] = {
    "prepare": 2.4,
    "generate": 41.8,
    "score": 6.1,
    "curate": 4.2,
    "sft": 58.3,
    "distill": 97.6,
    "evaluate": 12.9,
    "export": 19.7,
}


def build_finished_run(
    root: Path, *, num_train: int = 300, num_eval: int = 150, hostile: str = "", text_only: bool = False
) -> tuple[Config, RunPaths]:
    """Build the run below `root`. `hostile` goes into prompts and completions; `text_only` has no answers."""
    config = Config.model_validate(
        {
            "run": {"name": "tool-caller-0.6M", "dir": str(root)},
            "teacher": {"open": {"model": {"name": "example/teacher"}, "pipeline": {"max_new_tokens": 64}}},
            "train": {"sft": {}, "distillation": {}},
        }
    )
    paths = RunPaths.from_config(config)
    random_ = random.Random(7)
    prompts = [
        _build_prompt(index, "eval" if index < num_eval else "train", random_, hostile, text_only)
        for index in range(num_train + num_eval)
    ]
    save_prompts(paths.prompt_table, prompts)
    _save_rejects(paths)
    _fill_store(paths, prompts, random_, hostile)
    for stage in ("sft", "distill"):
        _write_curve(paths.training_metrics(stage), stage)
    _evaluate(config, paths, [prompt for prompt in prompts if prompt.split == "eval"], random_, hostile)
    write_json(paths.export_verdict, _verdict())
    write_json(paths.curate_report, _curation(num_train, num_eval))
    for stage, seconds in SECONDS.items():
        _complete(paths, stage, seconds, num_train, num_eval)
    return config, paths


def _build_prompt(index: int, split: Any, random_: random.Random, hostile: str, text_only: bool) -> Prompt:
    city, day = random_.choice(CITIES), random_.choice(DAYS)
    if text_only:
        text, task, reference = f"Tell me something about {city}.{hostile}", "text", None
    elif index % 5 < 3:
        text, task = f"Will it rain in {city} on {day}?{hostile}", "tool_call"
        reference = json.dumps({"name": "get_weather", "arguments": {"city": city, "day": day}})
    else:
        a, b, c = (random_.randrange(1, 10) for _ in range(3))
        text, task = f"What is {a} + {b} - {c}?{hostile}", "exact"
        reference = f"{a} + {b} = {a + b}, {a + b} - {c} = {a + b - c}"
    messages = [{"role": "user", "content": text}]
    return Prompt(f"{task}-{index:05d}", "demo", split, messages, task, reference, 14 + len(text) // 4)  # type: ignore[arg-type]


def _save_rejects(paths: RunPaths) -> None:
    codes = ["not_json"] * 4 + ["no_prompt"] * 9 + ["over_length"] * 17
    rows = [
        {"row": f"prompts.jsonl:{i}", "code": code, "reason": "because", "excerpt": ""}
        for i, code in enumerate(codes)
    ]
    paths.prompt_rejects.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), paths.prompt_rejects)


def _fill_store(paths: RunPaths, prompts: Sequence[Prompt], random_: random.Random, hostile: str) -> None:
    identity = StoreIdentity(
        teacher="example/teacher",
        engine="vllm",
        dtype="float32",
        tokenizer_sha256="a" * 64,
        chat_template_sha256="b" * 64,
        num_logprobs=NUM_LOGPROBS,
    )
    store = open_store(paths.store, identity, 4)
    generator = np.random.default_rng(5)
    rows = [_build_row(identity, prompt, generator, hostile) for prompt in prompts]
    save_requests(paths.requests, [Request(row.key, row.prompt_id, row.split) for row in rows])
    _commit(
        store,
        rows,
        [
            Reject(
                request_key(identity, [1, 2], {}, seed=s), f"x{s}", "generate", "engine_aborted", "gone", 3
            )
            for s in range(3)
        ],
    )


def _commit(store: TeacherStore, rows: Sequence[TeacherRow], rejects: Sequence[Reject]) -> None:
    with PartWriter(store) as writer:
        for partition in range(store.num_partitions):
            writer.commit_rows(
                partition, [r for r in rows if partition_of(r.key, store.num_partitions) == partition]
            )
            refused = [r for r in rejects if partition_of(r.key, store.num_partitions) == partition]
            if refused:
                writer.commit_rejects(partition, refused)


def _build_row(
    identity: StoreIdentity, prompt: Prompt, generator: np.random.Generator, hostile: str
) -> TeacherRow:
    T = int(generator.integers(18, 36)) if prompt.task != "tool_call" else int(generator.integers(26, 48))
    K = NUM_LOGPROBS
    sharpness = generator.choice([1.5, 4.0, 9.0], size=(T, 1), p=[0.1, 0.3, 0.6])
    logits_TV = np.sort(generator.gumbel(size=(T, 64)) * sharpness, axis=1)[:, ::-1]
    logprobs_TV = (
        logits_TV
        - np.log(np.exp(logits_TV - logits_TV.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits_TV.max(1, keepdims=True)
    )
    ids_TV = np.argsort(generator.random((T, 512)), axis=1)[:, :64].astype(np.int32)
    key = request_key(identity, [prompt.num_tokens, hash_of(prompt.id)], {"temperature": 0.3}, seed=0)
    return TeacherRow(
        key=key,
        prompt_id=prompt.id,
        split=prompt.split,
        source=prompt.source,
        messages=json.dumps(prompt.messages),
        prompt_token_ids=np.arange(prompt.num_tokens, dtype=np.int32),
        completion=(prompt.reference or "A fine place.") + hostile,
        completion_token_ids=ids_TV[:, 0].copy(),
        finish_reason="length" if generator.random() < 0.02 else "stop",
        flags=(),
        teacher_id=identity.teacher_id,
        sample_index=0,
        seconds=0.02,
        signal=TopKSignal(
            ids_TV[:, :K].copy(),
            logprobs_TV[:, :K].astype(np.float16),
            logprobs_TV[:, 0].astype(np.float32),
            np.log(np.exp(logprobs_TV[:, K:]).sum(1)).astype(np.float32),
        ),
    )


def hash_of(text: str) -> int:
    """A number for a prompt id that doesn't depend on the process."""
    return int(fingerprint_of(text)[:7], 16)


def _write_curve(path: Path, stage: str) -> None:
    generator = np.random.default_rng(len(stage))
    lines = []
    total = 600 if stage == "sft" else 900
    for step in range(10, total + 1, 10):
        decay = np.exp(-step / 140)
        ce = 5.6 * decay + 0.34 + 0.05 * generator.standard_normal() * (0.3 + decay)
        kl = 1.9 * np.exp(-step / 210) + 0.03 + 0.015 * generator.random()
        record: dict[str, Any] = {"step": step, "train/ce": ce, "train/loss": ce}
        if stage == "distill":
            ce = 0.9 * np.exp(-step / 300) + 0.31 + 0.02 * generator.standard_normal()
            record |= {"train/ce": ce, "train/kd_kl": kl, "train/loss": 0.5 * ce + 0.5 * kl}
        warm = min(1.0, step / (0.05 * total))
        record["train/lr"] = 3e-3 * warm * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / total)))
        record["train/grad_norm"] = 3.0 * decay + 0.25 + 0.2 * generator.random()
        record["train/tok_s_useful"] = 15500 + 700 * generator.standard_normal()
        lines.append({name: float(value) if name != "step" else value for name, value in record.items()})
        if step % 150 == 0:
            lines.append({"step": step, "eval/loss": float(record["train/loss"] + 0.03)})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _evaluate(
    config: Config, paths: RunPaths, prompts: list[Prompt], random_: random.Random, hostile: str
) -> None:
    skill: list[tuple[RowKey, str, int, float, float]] = [
        ("teacher", "Teacher", 1_912_320, 0.973, 0.0),
        ("untrained", "Untrained student", 601_344, 0.0, 5.1),
        ("sft", "Student after SFT", 601_344, 0.71, 0.31),
        ("distill", "Student after KD", 601_344, 0.926, 0.06),
    ]
    outputs = []
    for key, label, parameters, share, kl in skill:
        completions = [_answer(prompt, random_, share, hostile) for prompt in prompts]
        agreement = [
            RowAgreement(
                30, 30 * (0.2 + kl), 30 * kl * random_.uniform(0.6, 1.4), int(30 * max(0.0, 0.97 - kl / 6))
            )
            for _ in prompts
        ]
        outputs.append(
            ModelOutputs(
                key=key,
                label=label,
                model=key,
                parameters=parameters,
                completions=completions,
                num_tokens=[max(1, len(completion) // 2) for completion in completions],
                finish_reasons=["length" if key == "untrained" else "stop" for _ in prompts],
                verdicts=score_all(completions, prompts),
                agreement=None if key == "teacher" else list(agreement),
                num_without_room=0,
                seconds=3.0,
            )
        )
    rows = [build_row(entry, prompts) for entry in outputs]
    results = Results(
        run=config.run.name,
        primary_metric=choose_primary_metric(rows[0]),
        num_prompts=len(prompts),
        num_prompts_without_teacher_output=2,
        num_prompts_by_task=count_tasks(prompts),
        rows=rows,
        gap_closed=build_gaps(outputs),
        settings={"decoding": "greedy", "max_new_tokens": 64, "teacher": "greedy"},
    )
    save_completions(paths.evaluation_completions, prompts, outputs)
    write_json(paths.evaluation_results, results.model_dump(mode="json"))


def _answer(prompt: Prompt, random_: random.Random, share: float, hostile: str) -> str:
    if share == 0.0:
        return "".join(random_.choice('qz{u0,":e n~7') for _ in range(40)) + hostile
    if prompt.reference is None:
        return f"A fine place, they say.{hostile}"
    if random_.random() < share:
        return prompt.reference
    if prompt.task == "tool_call":
        call = json.loads(prompt.reference)
        call["arguments"]["city"] = random_.choice(CITIES) + hostile
        return json.dumps(call)[: random_.choice([200, 200, 41])]
    return prompt.reference[:-1] + str(random_.randrange(10)) + hostile


def _curation(num_train: int, num_eval: int) -> dict[str, Any]:
    return {
        "rows_in": num_train + num_eval,
        "kept": num_train + num_eval - 12,
        "dropped": 12,
        "steps": [{"filter": "refusal", "dropped": 5}, {"filter": "near_duplicates", "dropped": 7}],
        "dropped_by_code": {"near_duplicate": 7, "refusal": 5},
        "held_out": {"rows": num_eval, "would_be_dropped": {"finish_reason": 2}},
        "personal_data": {
            "mode": "redact",
            "in_completions": {"email": 3},
            "in_prompts": {},
            "rows_redacted": 2,
        },
        "sources": [
            {
                "source": "demo",
                "rows_in": num_train,
                "kept": num_train - 12,
                "share": 1.0,
                "wanted_share": 1.0,
            }
        ],
    }


def _verdict() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "source_stage": "distill",
        "source_sha256": {"model.safetensors": "c" * 64},
        "exported_sha256": {"model.safetensors": fingerprint_of("weights")},
        "dtype": "float32",
        "parameters": 601_344,
        "packages": installed_packages(),
        "verification": {
            "verified": True,
            "reason": "all 20 greedy completions are equal, token for token",
            "prompts": 20,
            "equal": 20,
            "ties": [],
            "tokens": 611,
            "tie_tolerance": 1e-4,
            "largest_tie": 0.0,
            "engine": "vllm 0.32.0",
        },
    }


def _complete(paths: RunPaths, stage: StageName, seconds: float, num_train: int, num_eval: int) -> None:
    kept = num_train + num_eval
    counts = {
        "prepare": {
            "rows_in": kept + 30 + 61,
            "kept": kept,
            "duplicates": 61,
            "dropped": 17,
            "rejected": 13,
            "over_length": 17,
            "train": num_train,
            "eval": num_eval,
        },
        "sft": {"tokens_trained": 912_000, "steps": 600, "parameters": 601_344},
        "distill": {"tokens_trained": 1_480_000, "steps": 900, "parameters": 601_344},
        "evaluate": {"prompts": num_eval},
    }.get(stage, {})
    metrics = {"device": "cpu", "num_workers": 1} if stage in ("sft", "distill") else {}
    directory = paths.stage_dir(stage)
    directory.mkdir(parents=True, exist_ok=True)
    save_manifest(
        directory,
        Manifest(
            stage=stage,
            fingerprint=fingerprint_of(stage),
            config={},
            inputs={},
            counts=counts,
            metrics=metrics,
            packages=installed_packages(),
            seconds=seconds,
        ),
    )
