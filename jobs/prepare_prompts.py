"""Read prompts from their sources, split them, and write the prompt table.

The first stage. Bad rows are rejected with their reason; held-out prompts are chosen here, once, and
no later stage trains on them.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/prepare_prompts.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/prepare_prompts.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("prepare", __doc__))
