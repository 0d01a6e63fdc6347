"""Train the student on the teacher's distributions.

Needs the teacher's signals in the store, and the SFT model where the configuration starts from it. Goes
on from its newest verified checkpoint when it is submitted again.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/train_distillation.py --config configs/worker_9b.yaml configs/kd_recipe.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/train_distillation.py --config configs/worker_9b.yaml configs/kd_recipe.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("distill", __doc__))
