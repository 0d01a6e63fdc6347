"""The device of training, from the configuration and the GPUs that there are or may be."""

from __future__ import annotations

import pytest

from raystill.config.device_type import choose_device_type
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault


def config(wanted: str) -> Config:
    return Config.model_validate({"device": {"type": wanted}})


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda")],
)
def test_the_device_follows_the_cluster(wanted: str, gpus: int, expected: str) -> None:
    assert choose_device_type(config(wanted), gpus) == expected


def test_cuda_is_refused_only_where_no_gpu_can_come() -> None:
    """I34: a cluster's GPU nodes may all be gone until somebody asks for them."""
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        choose_device_type(config("cuda"), 0)
    assert choose_device_type(config("cuda"), 0, can_grow=True) == "cuda"
