"""Let the teacher complete every prompt, into the teacher store.

Needs prepare. A row that the store has is never generated again: a job that was stopped or killed is
submitted again and goes on.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/generate_teacher.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/generate_teacher.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("generate", __doc__))
