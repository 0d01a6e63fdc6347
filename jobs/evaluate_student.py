"""Measure teacher and students on held-out prompts.

Needs a trained model. Ends with the gap table: what the student learnt of what the teacher can do.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/evaluate_student.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/evaluate_student.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("evaluate", __doc__))
