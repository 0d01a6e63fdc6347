"""vLLM as a process of its own that samples rollouts, spoken to in lines of JSON.

Reads one request per line from stdin and writes one answer per line to the stdout that it was started with;
what vLLM prints goes to stderr. It ends when its stdin does, so it never outlives a killed trainer.
Run by `raystill.train.rollouts.vllm_engine`.

    {"op": "start", "arguments": {...}}                      -> {"ok": true}
    {"op": "reload", "path": "/dir/with/model.safetensors"}  -> {"seconds": 0.02}
    {"op": "generate", "rows": [[ids, seed, room], ...], "sampling": {...}} -> {"rows": [[ids], ...]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are none; an error of vLLM's becomes an answer."""
    engine: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["op"] == "start":
                engine = _start(request["arguments"])
                answer: dict[str, Any] = {"ok": True}
            elif request["op"] == "reload":
                answer = _reload(engine, request["path"])
            else:
                answer = _generate(engine, request)
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(arguments: dict[str, Any]) -> Any:
    import vllm

    return vllm.LLM(**arguments)


def _reload(engine: Any, path: str) -> dict[str, Any]:
    started = time.monotonic()
    engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
    engine.reset_prefix_cache()  # its keys and values were made with the old weights
    return {"seconds": time.monotonic() - started}


def _generate(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    import vllm

    sampling = request["sampling"]
    params = [
        vllm.SamplingParams(
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            seed=seed,
            max_tokens=room,
            ignore_eos=True,
            stop_token_ids=sampling["stop_token_ids"],
            detokenize=False,
        )
        for _, seed, room in request["rows"]
    ]
    prompts = [{"prompt_token_ids": ids} for ids, _, _ in request["rows"]]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return {"rows": [list(output.outputs[0].token_ids) for output in outputs]}


def main() -> int:
    """Serve on stdin and stdout."""
    # In this process: an engine process of its own would outlive it when it is killed.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
