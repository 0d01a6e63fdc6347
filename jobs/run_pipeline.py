"""Run the whole pipeline: complete stages are skipped, the others go on where they stopped.

The driver holds no state: a job that dies is submitted again with the same line.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/run_pipeline.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/run_pipeline.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("run", __doc__))
