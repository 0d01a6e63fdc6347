"""Grade the teacher's answers with a judge: any model with open weights, or any endpoint.

Needs generate, and `grade` in the configuration. The judge's replies live in a store of their own, so that
none is paid for twice; curate reads the scores.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/grade_outputs.py --config configs/demo.yaml --set grade.open.model.name=/shared/judge \\
        --set run.dir=/shared/runs

Here:

    python jobs/grade_outputs.py --config configs/demo.yaml --set grade.open.model.name=./judge --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("grade", __doc__))
