"""A driver to be killed: runs the stage generate on the configuration whose JSON is given."""

from __future__ import annotations

import sys

from raystill.cluster.ray_session import ray_session
from raystill.config.schema import Config
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.teacher.generate_stage import GENERATE_STAGE

if __name__ == "__main__":
    config = Config.model_validate_json(sys.argv[1])
    with ray_session(config):
        execute(GENERATE_STAGE, config, RunPaths.from_config(config))
