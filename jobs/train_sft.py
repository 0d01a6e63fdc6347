"""Fine-tune on the teacher's completions.

Needs generate. Goes on from its newest verified checkpoint when it is submitted again.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/train_sft.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/train_sft.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("sft", __doc__))
