"""What training would refuse, asked by a process of its own while Ray starts and Ray Tune is imported.

It takes torch and transformers, 4 to 6 s of imports that the driver of a sweep needs for nothing else.
`python -m raystill.tune.preflight` reads a question from its standard input and answers in one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raystill import errors
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, Problem, RaystillError
from raystill.run.paths import RunPaths, StageName
from raystill.run.remote import open_place


@contextmanager
def begin_preflight(config: Config, run: RunPaths, stage: StageName) -> Iterator[Callable[[], None]]:
    """Begin to look; yields what waits for the end and raises the RaystillError that the stage's preflight
    raises, or EnvironmentFault where the process died. Leaving ends the process."""
    question = {
        "config": config.model_dump_json(),
        "root": str(run.root),
        "store": str(run.store),
        "stage": stage,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # `finish` says what became of it
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()

    def finish() -> None:
        said, logged = process.communicate()
        if process.returncode != 0 or not said.strip():
            raise EnvironmentFault(
                f"the look at what training needs ended with exit code {process.returncode}",
                where=(logged.strip().splitlines() or ["it said nothing"])[-1],
                fix="run `raystill check`; where memory is short, close other programs",
            )
        _raise_refusal(json.loads(said.strip().splitlines()[-1]))

    try:
        yield finish
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _raise_refusal(answer: dict[str, Any]) -> None:
    if answer["problems"]:
        raise getattr(errors, answer["kind"])("", problems=tuple(Problem(*one) for one in answer["problems"]))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the stage's preflight refuses: the error's class and its problems, none where it is content."""
    from raystill.train.stage import DISTILL_STAGE, SFT_STAGE

    stage = SFT_STAGE if question["stage"] == "sft" else DISTILL_STAGE
    run = RunPaths(root=Path(question["root"]), store=open_place(question["store"]))
    try:
        if stage.preflight:
            stage.preflight(Config.model_validate_json(question["config"]), run)
    except RaystillError as error:
        problems = [[problem.what, problem.where, problem.fix] for problem in error.problems]
        return {"kind": type(error).__name__, "problems": problems}
    return {"kind": "", "problems": []}


def main() -> None:
    """Answer the question on the standard input."""
    sys.stdout.write("\n" + json.dumps(answer(json.loads(sys.stdin.readline()))) + "\n")


if __name__ == "__main__":
    main()
