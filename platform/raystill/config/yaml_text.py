"""A configuration as YAML text that `load_config` reads back to the same values."""

from __future__ import annotations

import re
from typing import Any

import yaml

from raystill.config.schema import Config


class _Yaml12Dumper(yaml.SafeDumper):
    """PyYAML quotes text that YAML 1.1 would read as something else; this adds what YAML 1.2 would."""


for _tag, _pattern in (
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
):
    _Yaml12Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list("-+.0123456789")
    )


def render_config(config: Config) -> str:
    """Every value of `config`, defaults included, as YAML."""
    return render_yaml(config.model_dump(mode="json"))


def render_yaml(value: Any) -> str:
    """Plain data as YAML 1.2 text in the given order of keys."""
    return yaml.dump(value, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True, width=110)
