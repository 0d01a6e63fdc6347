"""A closed teacher that is real: vLLM's own OpenAI server with the demo teacher, text and top-20 logprobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raystill.demo
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.reader import load_rows
from raystill.store.selfcheck import check_rows
from raystill.store.store import load_store
from raystill.teacher.generate_stage import GENERATE_STAGE
from raystill.testing.ports import find_port
from raystill.text.chat import load_chat_format

pytestmark = [pytest.mark.vllm, pytest.mark.ray]
DEMO_TEACHER = Path(raystill.demo.__file__).parent / "teacher"
START_SECONDS = 600.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM server on loopback."""
    pytest.importorskip("vllm")
    port = find_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(DEMO_TEACHER),
        "--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--max-num-seqs", "8", "--dtype", "float32",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except (OSError, urllib.error.URLError):
            time.sleep(1.0)
        else:
            return
    raise AssertionError(f"the server did not come up: {log.read_text()[-3000:]}")


def test_text_ids_and_top_20_logprobs_of_a_real_server(
    server: str, local_ray: None, tmp_path: Path, save_prompt_table: Callable[..., RunPaths]
) -> None:
    config = Config.model_validate(
        {
            "run": {"dir": str(tmp_path / "runs"), "name": "real"},
            "teacher": {
                "closed": {
                    "model": {"name": "demo", "tokenizer": str(DEMO_TEACHER)},
                    "endpoint": {"base_url": server, "api_key_env": None},
                    "pipeline": {"batch_size": 8, "max_new_tokens": 24, "temperature": 0.8},
                },
                "signals": {"num_logprobs": 20},
                "store": {"num_partitions": 2},
            },
        }
    )
    paths = save_prompt_table(config, 20)
    events: list[dict[str, Any]] = []
    outcome = execute(GENERATE_STAGE, config, paths, on_event=events.append)
    assert outcome.manifest.counts["done"] == 20, outcome.manifest.metrics
    rows = load_rows(load_store(paths.store), with_signal=True)
    check_rows(rows)
    chat = load_chat_format(str(DEMO_TEACHER))
    for row in rows:
        assert row.signal is not None and row.signal.num_logprobs == 20
        assert len(row.completion_token_ids) == len(row.signal.sampled_logprob_T) > 0
        assert chat.decode(row.completion_token_ids.tolist(), skip_special_tokens=True) == row.completion
        assert (row.completion_token_ids[-1] in chat.eos_token_ids) == (row.finish_reason == "stop")
        mass_T = np.exp(row.signal.topk_logprobs_TK.astype(np.float64)).sum(axis=1)
        assert mass_T.max() <= 1.01
    assert [event["message"] for event in events if event["event"] == "note"] == []
