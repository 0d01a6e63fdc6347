"""`raystill bench NAME`: measure this machine against a pinned peer."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from raystill.cli.arguments import Debug, Json
from raystill.cli.environment import quiet_libraries
from raystill.cli.terminal import make_table, print_json, print_table
from raystill.errors import ConfigError

BENCHES = {
    "generate": "raystill.bench.generate",
    "client": "raystill.bench.client",
    "columns": "raystill.bench.columns",
    "storage": "raystill.bench.storage",
    "resume": "raystill.bench.resume",
    "checkpoint": "raystill.bench.checkpoint",
    "gap": "raystill.bench.gap",
    "quality": "raystill.bench.quality",
    "sft": "raystill.bench.sft",
    "kd-head": "raystill.bench.kd_head",
    "kd-step": "raystill.bench.kd_step",
    "data": "raystill.bench.data",
    "sweep": "raystill.bench.sweep",
    "cluster": "raystill.bench.cluster",
}
_OLD_NAMES = {"generation": "generate"}
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(BENCHES)}, or all.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder that gets NAME.json and NAME.md as well.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Smaller: ends within a minute on two cores.")]


def bench(
    name: Name,
    quick: Quick = False,
    output: Output = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure this machine against a pinned peer, interleaved in one run."""
    name = _OLD_NAMES.get(name, name)
    if name != "all" and name not in BENCHES:
        raise ConfigError(
            f"there is no benchmark {name}", where="bench", fix=f"one of {', '.join(BENCHES)}, all"
        )
    quiet_libraries()
    results = [
        import_module(module).run_bench(quick=quick)
        for known, module in BENCHES.items()
        if name in (known, "all")
    ]
    if output is not None:
        from raystill.bench.result import save_result

        for result in results:
            save_result(output, result)
    if as_json:
        print_json(results if name == "all" else results[0])
        return
    for result in results:
        rows = [
            (
                row["case"],
                row["metric"],
                _number(row["ours"]),
                _number(row["peer"]),
                row["peer_name"],
                _number(row["ratio"]),
                str(row["goal"]),
                "yes" if row["met"] else "no",
            )
            for row in result["rows"]
        ]
        right = {"ours", "peer", "ratio", "goal"}
        headings = ("case", "metric", "ours", "peer", "peer name", "ratio", "goal", "met")
        print_table(make_table(result["bench"], {heading: heading in right for heading in headings}, rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
