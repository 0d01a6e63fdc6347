"""Add the teacher's distributions to completions that have none.

Needs generate. Teacher forcing over stored completions; rows that have their distributions already are
left alone.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/score_teacher.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/score_teacher.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("score", __doc__))
