"""Generation and training by two workers on nodes with addresses of their own, over a real network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from raystill.run.manifest import load_manifest

pytestmark = [pytest.mark.ray, pytest.mark.soak]  # a minute and a half
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "platform" / "raystill" / "demo"
_SPEC = importlib.util.spec_from_file_location("node_network", Path(__file__).parent / "node_network.py")
assert _SPEC is not None and _SPEC.loader is not None
nodes: Any = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = nodes
_SPEC.loader.exec_module(nodes)


def config(folder: Path, address: str) -> dict[str, Any]:
    return {
        "run": {"name": "apart", "dir": str(folder / "runs")},
        "device": {"type": "cpu"},
        "cluster": {"address": address},
        "prompts": {
            "sources": [{"path": str(DEMO / "data" / "prompts.jsonl"), "limit": 60}], "eval_size": 10,
        },
        "teacher": {
            "engine": "transformers",
            "open": {
                "model": {"name": str(DEMO / "teacher"), "bfloat16": False},
                "pipeline": {"max_new_tokens": 8},
            },
            "signals": {"num_logprobs": 4, "capture": "generation"},
            "store": {"num_partitions": 4, "rows_per_part": 4},
        },
        "student": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256,
        },
        "training": {
            "steps": 6, "max_seq_len": 256, "num_workers": 2, "cpus_per_worker": 1,
            "checkpoint_cleanup": {"min_free_space_gb": 0.0},
        },
        "train": {"distillation": {"init": "student", "per_device_train_batch_size": 4}},
    }  # fmt: skip


def test_two_nodes_generate_and_train_together(tmp_path: Path) -> None:
    if reason := nodes.why_not():
        pytest.skip(reason)
    with nodes.node_network(2) as network:
        file = tmp_path / "run.json"
        file.write_text(json.dumps(config(tmp_path, network.address)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "raystill.cli.main", "run", "--config", str(file)]
        driver = network.spawn(0, [*command, "--until", "distill"])
        driver.wait(timeout=400)
        assert driver.returncode == 0, network.printed()
    generated = load_manifest(tmp_path / "runs" / "apart" / "generate")
    trained = load_manifest(tmp_path / "runs" / "apart" / "distill")
    assert generated is not None and generated.counts["done"] == 60
    # Each node has one CPU and each worker takes one: they met over the network.
    assert trained is not None and trained.metrics["num_workers"] == 2 and trained.counts["steps"] == 6
