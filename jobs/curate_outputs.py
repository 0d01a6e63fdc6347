"""Choose which of the teacher's outputs to train on, with a reason for every other.

Needs generate, and `curate` in the configuration. Stored rows stay in the store: other runs may keep what
this one drops.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/curate_outputs.py --config configs/demo.yaml configs/curate_recipe.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/curate_outputs.py --config configs/demo.yaml configs/curate_recipe.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("curate", __doc__))
