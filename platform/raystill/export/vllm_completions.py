"""Greedy completions of an exported model in vLLM, as a process of its own that leaves nothing behind.

Reads one JSON object from the file named first, writes one to the file named second. Run by
`raystill.export.verify`; `python -m raystill.export.vllm_completions REQUEST ANSWER` works by hand too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from raystill.run.publish import write_json


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """Token ids of a greedy completion per prompt (without the EOS), and vLLM's version."""
    # In this process: an engine process of its own would outlive a killed parent.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm
    from vllm.platforms import current_platform

    on_gpu = current_platform.is_cuda()
    memory = (
        {"gpu_memory_utilization": request["gpu_memory_utilization"]}
        if on_gpu
        else {"kv_cache_memory_bytes": request["kv_cache_bytes"]}
    )
    engine = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        max_num_seqs=min(32, max(1, len(request["prompts"]))),
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        **memory,
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=request["max_new_tokens"], detokenize=False)
    outputs = engine.generate(
        [{"prompt_token_ids": ids} for ids in request["prompts"]], sampling, use_tqdm=False
    )
    return {
        "version": vllm.__version__,
        "completions": [list(output.outputs[0].token_ids) for output in outputs],
    }


def main(arguments: list[str]) -> int:
    """Answer the request in the file `arguments[0]` into the file `arguments[1]`."""
    request_path, answer_path = (Path(argument) for argument in arguments)
    answer = complete(json.loads(request_path.read_text(encoding="utf-8")))
    write_json(answer_path, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
