"""Search values for a training stage: many short trainings from the answers that a run has stored.

Needs generate (and sft, where distill starts from it). Asks the teacher nothing. Finished trials stay so when
it is submitted again; the others go on from their newest checkpoints.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/tune_training.py --config configs/demo.yaml configs/tune/lora_and_losses.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/tune_training.py --config configs/demo.yaml configs/tune/lora_and_losses.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("tune", __doc__))
