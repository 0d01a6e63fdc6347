"""Rollouts in vLLM: a process beside the trainer whose weights are replaced in place at every refresh."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raystill.errors import ConfigError, EnvironmentFault
from raystill.store.records import Int32Array
from raystill.train.rollouts.engine import RolloutRequest, RolloutSampling
from raystill.train.rollouts.snapshot import write_snapshot
from raystill.train.student import Student
from raystill.train.students.quantize import is_quantized

_WHERE = "train.distillation.teacher.rollouts.engine"
_GIB = 2**30
# What says to a process that it is one of a training group.
_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def require_vllm() -> None:
    """Raise EnvironmentFault, before a teacher is asked, where there is no vLLM to write rollouts with."""
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentFault(
            "rollouts are to be written by vLLM, which is not installed",
            where=_WHERE,
            fix="pip install 'raystill[vllm]', or set it to transformers",
        )


def engine_environment(
    environment: Mapping[str, str], device: torch.device, num_threads: int
) -> dict[str, str]:
    """The environment of the engine beside a training worker on `device`, whose own is `environment`.

    It is no member of the training group. Workers of a machine see the GPUs of all of them; the engine sees
    its worker's alone, or all engines would crowd the first.
    """
    own = {name: value for name, value in environment.items() if name not in _GROUP}
    own["OMP_NUM_THREADS"] = str(num_threads)
    own.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if device.type == "cuda":
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        place = device.index or 0
        own["CUDA_VISIBLE_DEVICES"] = visible[place] if place < len(visible) else str(place)
    return own


class VllmRollouts:
    """`RolloutEngine` on vLLM. The process starts at the first refresh (tens of seconds)."""

    def __init__(
        self,
        student: Student,
        sampling: RolloutSampling,
        *,
        memory_gib: float,
        num_threads: int,
        scratch: Path,
    ) -> None:
        """Weights are handed over through `scratch`, which is overwritten each time and gone after `close`.

        Raises ConfigError for a 4-bit student.
        """
        if is_quantized(student.causal_lm):
            raise ConfigError(
                "a student on 4-bit weights can't hand its weights to vLLM",
                where=_WHERE,
                fix="set it to transformers, or train on weights that aren't quantised",
            )
        self._student = student
        self._sampling = sampling
        self._memory_gib = memory_gib
        self._num_threads = num_threads
        self._process: subprocess.Popen[str] | None = None
        self._scratch = scratch

    def refresh(self) -> None:
        """Hand over the weights that train now. Raises EnvironmentFault where vLLM can't take them."""
        write_snapshot(self._student, self._scratch, self._dtype)
        if self._process is None:
            self._start()
        else:
            self._ask({"op": "reload", "path": str(self._scratch.resolve())})

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Int32Array]:
        """Sampled completions, in the order of `requests`."""
        sampling = self._sampling
        found = [np.zeros(0, dtype=np.int32) for _ in requests]
        fitting = [
            index for index, request in enumerate(requests) if 0 < len(request.prompt_ids) < sampling.context
        ]
        rows = [
            (
                requests[index].prompt_ids.tolist(),
                requests[index].seed,
                min(sampling.max_new_tokens, sampling.context - len(requests[index].prompt_ids)),
            )
            for index in fitting
        ]
        answer = self._ask(
            {
                "op": "generate",
                "rows": rows,
                "sampling": {
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "stop_token_ids": sorted(sampling.eos_ids),
                },
            }
        )
        for index, token_ids in zip(fitting, answer["rows"], strict=True):
            found[index] = np.array(token_ids, dtype=np.int32)
        return found

    def close(self) -> None:
        """End the process; harmless when called twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds no state
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._student.device.type == "cuda" else torch.float32

    def _start(self) -> None:
        environment = engine_environment(os.environ, self._student.device, self._num_threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raystill.train.rollouts.vllm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._ask(
            {
                "op": "start",
                "arguments": {
                    "model": str(self._scratch.resolve()),
                    "skip_tokenizer_init": True,
                    "generation_config": "vllm",
                    "dtype": str(self._dtype).removeprefix("torch."),
                    "max_model_len": self._sampling.context,
                    "max_num_seqs": self._sampling.batch_size,
                    # vLLM 0.32 on a CPU dies of a prompt cut into chunks while its row has a seed.
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": max(4096, self._sampling.context),
                    "kv_cache_memory_bytes": int(self._memory_gib * _GIB),
                    "enforce_eager": True,
                    "disable_log_stats": True,
                    "seed": 0,
                },
            }
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answer: dict[str, Any] = {}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line) if line else {"error": "the process ended"}
        except BrokenPipeError:
            answer = {"error": "the process ended"}
        if "error" in answer:
            raise EnvironmentFault(
                f"vLLM could not {request['op']} rollouts: {answer['error']}",
                where=_WHERE,
                fix="install the vllm extra, lower rollouts.memory_gib or batch_size, or set the engine to "
                "transformers",
            )
        return answer
