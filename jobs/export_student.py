"""Write the student as files that other programs load, and verify them.

Needs a trained model. Writes merged safetensors with tokenizer and template, and a verdict on whether
other programs get the same completions from them.

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/export_student.py --config configs/demo.yaml \\
        --set run.dir=/shared/runs

Here:

    python jobs/export_student.py --config configs/demo.yaml --dry-run
"""

from __future__ import annotations

import sys

from raystill.cli.jobs import job_main

if __name__ == "__main__":
    sys.exit(job_main("export", __doc__))
