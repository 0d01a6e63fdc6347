"""Does the exported directory behave like the trained model? Greedy completions, token for token.

transformers completes with the trained model in memory; vLLM completes in a process of its own from the
exported files. So a tensor that was lost on the way, an EOS that is missing, and an engine that reads the
configuration differently all show.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raystill.errors import DataError, EnvironmentFault
from raystill.export.verdict import Difference, Verification
from raystill.run.publish import write_json

# Two candidates this close in logprob are a tie. For the 16-bit types: one unit in the last place of a logit
# between 16 and 32, which is how far two correct kernels may round apart.
TIE_TOLERANCE = {"float32": 1e-4, "float16": 2.0**-6, "bfloat16": 2.0**-3}
_TIMEOUT_SECONDS = 900.0
_LAST_WORDS_CHARS = 400
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Fault)\b.*:")


@dataclass(frozen=True)
class VerificationTask:
    """Prompts as token ids with their ids in the prompt table, how to complete them, and where to log."""

    prompt_ids: list[str]
    prompts: list[list[int]]
    max_new_tokens: int
    eos_ids: list[int]
    dtype: str
    context: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    log: Path


def unavailable_reason(num_prompts: int) -> str | None:
    """Why nothing can be verified here, or None where it can."""
    if num_prompts == 0:
        return "export.verify_prompts is 0, so nothing was compared"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here, so nothing was compared"
    return None


def verify_export(model: Any, exported: Path, task: VerificationTask) -> Verification:
    """Compare vLLM on `exported` with `model` on every prompt.

    Raises DataError naming the first prompt where they differ by more than a tie, EnvironmentFault if vLLM
    can't run here.
    """
    ours = [complete_greedily(model, prompt, task) for prompt in task.prompts]
    device = model.device
    model.to("cpu")  # vLLM wants the GPU for itself
    answer = run_vllm(exported, task)
    model.to(device)
    tolerance = TIE_TOLERANCE[task.dtype]
    ties = []
    for prompt_id, prompt, mine, theirs in zip(
        task.prompt_ids, task.prompts, ours, answer["completions"], strict=True
    ):
        difference = find_difference(
            model, prompt_id, prompt, strip_eos(mine, task), strip_eos(theirs, task), task
        )
        if difference is None:
            continue
        if _margin(difference) >= tolerance:
            raise _differs(difference, exported, tolerance)
        ties.append(difference)
    return Verification(
        verified=True,
        reason=_describe_success(len(ours), len(ties), tolerance),
        prompts=len(ours),
        equal=len(ours) - len(ties),
        ties=ties,
        tokens=sum(len(completion) for completion in ours),
        tie_tolerance=tolerance,
        largest_tie=max((_margin(tie) for tie in ties), default=0.0),
        engine=f"vllm {answer['version']}",
    )


@torch.inference_mode()
def complete_greedily(model: Any, prompt: Sequence[int], task: VerificationTask) -> list[int]:
    """transformers' own greedy completion of one prompt, with the EOS that ended it."""
    input_ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=min(task.max_new_tokens, task.context - len(prompt)),
        do_sample=False,
        eos_token_id=task.eos_ids,
        pad_token_id=task.eos_ids[0],
    )
    return [int(token_id) for token_id in output[0, len(prompt) :]]


def strip_eos(completion: Sequence[int], task: VerificationTask) -> list[int]:
    """The completion and one EOS at most: engines differ in whether they hand out the token that ended it."""
    for position, token_id in enumerate(completion):
        if token_id in task.eos_ids:
            return list(completion[:position])
    return list(completion)


@torch.inference_mode()
def find_difference(
    model: Any,
    prompt_id: str,
    prompt: Sequence[int],
    mine: list[int],
    theirs: list[int],
    task: VerificationTask,
) -> Difference | None:
    """Where two completions part, with transformers' logprobs of both choices there, or None if equal.

    A completion that ended chose its EOS.
    """
    if mine == theirs:
        return None
    shared = zip(mine, theirs, strict=False)
    position = next((i for i, (a, b) in enumerate(shared) if a != b), min(len(mine), len(theirs)))
    input_ids = torch.tensor([[*prompt, *mine[:position]]], device=model.device)
    logprobs_V = model(input_ids=input_ids).logits[0, -1].float().log_softmax(dim=-1)
    ending = max(task.eos_ids, key=lambda token_id: float(logprobs_V[token_id]))
    ours = mine[position] if position < len(mine) else ending
    other = theirs[position] if position < len(theirs) else ending
    return Difference(
        prompt_id=prompt_id,
        position=position,
        transformers_token=ours,
        vllm_token=other,
        transformers_logprob=float(logprobs_V[ours]),
        vllm_logprob=float(logprobs_V[other]),
    )


def run_vllm(exported: Path, task: VerificationTask) -> dict[str, Any]:
    """vLLM's completions, from a process group that is gone when this returns.

    Raises EnvironmentFault with the engine's last words and where its log is if it fails.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="raystill-") as scratch:
        request, answer = (Path(scratch) / name for name in ("request.json", "answer.json"))
        write_json(
            request,
            {
                "model": str(exported.resolve()),
                "dtype": task.dtype,
                "max_model_len": task.context,
                "max_new_tokens": task.max_new_tokens,
                "gpu_memory_utilization": task.gpu_memory_utilization,
                "kv_cache_bytes": int(task.kv_cache_gib * 2**30),
                "prompts": task.prompts,
            },
        )
        with task.log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "raystill.export.vllm_completions", str(request), str(answer)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            code = _wait(process)
        if code != 0 or not answer.exists():
            raise EnvironmentFault(
                f"vLLM could not complete the exported model {_ending(code)}: {_last_words(task.log)}",
                where=f"{exported}; the engine's log is {task.log}",
                fix="mend what the log says, or set export.verify_prompts to 0 to export without the proof",
            )
        answered: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return answered


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Also after success: whatever the engine may have started belongs to this group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int | None) -> str:
    return f"within {_TIMEOUT_SECONDS:.0f} s" if code is None else f"(exit code {code})"


def _last_words(log: Path) -> str:
    """The last line that names an error, or else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line]
    named = [line for line in said if _ERROR_LINE.match(line)]
    return (named or said or ["it said nothing"])[-1][:_LAST_WORDS_CHARS]


def _margin(difference: Difference) -> float:
    if difference.transformers_logprob is None or difference.vllm_logprob is None:
        return float("inf")
    return abs(difference.transformers_logprob - difference.vllm_logprob)


def _differs(difference: Difference, exported: Path, tolerance: float) -> DataError:
    return DataError(
        f"vLLM and transformers complete prompt {difference.prompt_id} differently: at completion token "
        f"{difference.position} transformers writes {difference.transformers_token} "
        f"(logprob {difference.transformers_logprob:.5f}), vLLM {difference.vllm_token} "
        f"(logprob {difference.vllm_logprob:.5f}); a tie would be within {tolerance:g}",
        where=str(exported.name),
        fix="export in float32, or set export.verify_prompts to 0 to export without the proof",
    )


def _describe_success(prompts: int, ties: int, tolerance: float) -> str:
    if ties == 0:
        return f"all {prompts} greedy completions are equal, token for token"
    return (
        f"{prompts - ties} of {prompts} greedy completions are equal; {ties} part at a tie "
        f"(two tokens whose logprobs differ by less than {tolerance:g})"
    )
