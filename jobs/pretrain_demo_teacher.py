"""Train the demo's teacher from scratch and write its bundle (a few minutes on one CPU core).

On a cluster:

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python jobs/pretrain_demo_teacher.py --output /shared/demo_teacher
"""

import argparse
import logging
from pathlib import Path

from raystill.demo.pretrain_teacher import TEACHER_DIR, TeacherRecipe, pretrain_teacher


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    default = TeacherRecipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=TEACHER_DIR, help="directory of the bundle")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--clean-steps", type=int, default=default.clean_steps)
    parser.add_argument("--slip-rate", type=float, default=default.slip_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    args = parser.parse_args()
    recipe = TeacherRecipe(
        steps=args.steps, clean_steps=args.clean_steps, slip_rate=args.slip_rate, seed=args.seed
    )
    pretrain_teacher(recipe, args.output)


if __name__ == "__main__":
    main()
