"""Ray Tune's schedulers and searchers for a sweep, told what earlier processes of the sweep have seen."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from raystill.config.tune import TuneSection
from raystill.config.tune_contradictions import given_values
from raystill.errors import EnvironmentFault
from raystill.run.sweep_paths import SweepPaths
from raystill.tune.records import TrialRecord, begin_trial
from raystill.tune.space import Params, clamp, draw, plan_params

SCORE, TIME = "score", "percent"
# Where a trial's number and parameters lie in what Ray Tune calls its config.
SLOT = "slot"
# Above 100, so that the last report of a trial doesn't look like one that came too late.
_END = 101.0


def build_scheduler(tune: TuneSection, earlier: list[TrialRecord], source: TrialSource) -> TrialScheduler:
    """The scheduler of `tune.scheduler`; ASHA's rungs hold what `earlier` finished trials reported."""
    if tune.scheduler == "none":
        return FIFOScheduler()
    if tune.scheduler == "pbt":
        return _build_pbt(tune, source)
    scheduler = ASHAScheduler(
        time_attr=TIME,
        metric=SCORE,
        mode=tune.mode,
        max_t=_END,
        grace_period=100.0 * tune.asha.grace,
        reduction_factor=tune.asha.reduction_factor,
    )
    for record in earlier:
        _replay(scheduler, record)
    return scheduler


def _replay(scheduler: TrialScheduler, record: TrialRecord) -> None:
    """Show a scheduler the reports of a trial that finished before this process began."""
    trial: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")
    scheduler.on_trial_add(None, trial)
    for report in record.reports:
        scheduler.on_trial_result(None, trial, {TIME: report.percent, SCORE: report.value})
    if record.last is not None:
        scheduler.on_trial_complete(None, trial, {TIME: record.last.percent, SCORE: record.last.value})


class _Population(PopulationBasedTraining):  # type: ignore[misc]
    """Ray's scheduler, which takes no searcher: it tells the source of every trial before that starts."""

    source: TrialSource

    def on_trial_add(self, tune_controller: Any, trial: Any, **arguments: Any) -> None:
        """A trial of the population was made."""
        slot = trial.config[SLOT]
        self.source.register(trial.trial_id, slot["number"], slot["params"])
        super().on_trial_add(tune_controller, trial, **arguments)

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        """Let a trial go on from another one's checkpoint.

        Where the last two reports arrive together, the trial's own pause is still being saved, and Ray Tune
        2.60 takes "pause now" for "stop once that save is done": the trial would end at its next checkpoint.
        What it saves is not wanted any more, so it counts as not saving. And it keeps its own number, which
        Ray Tune would copy with the other one's parameters.
        """
        number = trial.config[SLOT]["number"]
        trial.temporary_state.saving_to = None
        super()._exploit(tune_controller, trial, trial_to_clone)
        trial.set_config(trial.config | {SLOT: trial.config[SLOT] | {"number": number}})


def _build_pbt(tune: TuneSection, source: TrialSource) -> PopulationBasedTraining:
    generator = random.Random(tune.seed)
    mutations: dict[str, Any] = {}
    for path, distribution in tune.space.items():
        kind, values = given_values(distribution)
        mutations[path] = (
            values if kind == "choice" else (lambda chosen=distribution: draw(chosen, generator))
        )

    def keep_inside(sampled: dict[str, Any]) -> dict[str, Any]:
        slot = sampled[SLOT]
        params = {path: clamp(tune.space[path], value) for path, value in slot["params"].items()}
        return sampled | {SLOT: slot | {"params": params}}

    population = _Population(
        time_attr=TIME,
        metric=SCORE,
        mode=tune.mode,
        perturbation_interval=100.0 * tune.pbt.every,
        hyperparam_mutations={SLOT: {"params": mutations}},
        quantile_fraction=tune.pbt.quantile,
        resample_probability=tune.pbt.resample,
        custom_explore_fn=keep_inside,
        synch=True,  # all are compared at the same share of the run, however many run at once
        log_config=False,
    )
    population.source = source
    return population


class TrialSource(Searcher):  # type: ignore[misc]
    """Says what the next trial is: unfinished ones of earlier processes first, then new ones.

    Every trial is written down before Ray Tune hears of it, so a sweep whose process is killed goes on with
    the same trials.
    """

    def __init__(self, tune: TuneSection, sweep: SweepPaths, earlier: list[TrialRecord]) -> None:
        """`earlier` are all trials that were begun, finished or not."""
        super().__init__(metric=SCORE, mode=tune.mode)
        self._sweep = sweep
        self._inner = _build_optuna(tune, earlier) if tune.search == "optuna" else None
        begun = {record.number for record in earlier}
        self._waiting: list[tuple[int, Params]] = [
            (record.number, record.params) for record in earlier if record.outcome == "unfinished"
        ]
        if self._inner is None:
            planned = enumerate(plan_params(tune))
            self._waiting += [(number, params) for number, params in planned if number not in begun]
            self._fresh: list[int] = []
        else:
            self._fresh = [number for number in range(tune.num_samples) if number not in begun]
        self._asked: set[str] = set()
        self._is_closed = False
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes its state away, and the trials on disk are ours."""
        return {}

    @property
    def left(self) -> int:
        """Trials that were not handed out yet."""
        return len(self._waiting) + len(self._fresh)

    def close(self) -> None:
        """Hand out nothing any more."""
        self._is_closed = True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number and parameters, or FINISHED."""
        if self._is_closed:
            return Searcher.FINISHED
        if self._waiting:
            number, params = self._waiting.pop(0)
        elif self._fresh and self._inner is not None:
            suggested = self._inner.suggest(trial_id)
            if suggested is None:
                return None
            number, params = self._fresh.pop(0), self._decode(suggested)
            self._asked.add(trial_id)
        else:
            return Searcher.FINISHED
        self.register(trial_id, number, params)
        return {SLOT: {"number": number, "params": params}}

    def register(self, trial_id: str, number: int, params: Params) -> None:
        """Write a trial down under the name that Ray Tune gave it."""
        begin_trial(self._sweep, number, trial_id, params)
        self.numbers[trial_id] = number

    def population(self) -> list[dict[str, Any]]:
        """All trials at once, for a scheduler that takes no searcher."""
        return [{"number": number, "params": params} for number, params in self._waiting]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search how a trial that it suggested ended."""
        if self._inner is not None and trial_id in self._asked:
            self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials on disk are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the trials on disk are the state."""

    def _decode(self, suggested: dict[str, Any]) -> Params:
        assert self._inner is not None
        return {path: self._inner.choices[path][value] if path in self._inner.choices else value
                for path, value in suggested.items()}  # fmt: skip


class _Optuna:
    """Ray's Optuna searcher with choices by position (Optuna wants plain values), and earlier trials."""

    def __init__(self, tune: TuneSection, num_earlier: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.choices: dict[str, list[Any]] = {}
        space: dict[str, Any] = {}
        for path, distribution in tune.space.items():
            kind, values = given_values(distribution)
            if kind == "choice":
                self.choices[path] = values
                space[path] = optuna.distributions.CategoricalDistribution(list(range(len(values))))
            elif kind == "randint":
                low, high = values
                space[path] = optuna.distributions.IntDistribution(low, high)
            else:
                low, high = values
                space[path] = optuna.distributions.FloatDistribution(low, high, log=kind == "loguniform")
        # With the seed alone, a search that goes on would begin with the first trials' values again.
        seed = tune.seed + num_earlier
        self._search = OptunaSearch(space, metric=SCORE, mode=tune.mode, seed=seed)

    def remember(self, record: TrialRecord) -> None:
        """Count in a finished trial of an earlier process."""
        assert record.last is not None
        params = {
            path: self.choices[path].index(value) if path in self.choices else value
            for path, value in record.params.items()
        }
        self._search.add_evaluated_point(params, record.last.value)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Values for the next trial; None: ask later."""
        found: dict[str, Any] | None = self._search.suggest(trial_id)
        return found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        """How a trial ended."""
        self._search.on_trial_complete(trial_id, result, error)


def _build_optuna(tune: TuneSection, earlier: list[TrialRecord]) -> _Optuna:
    try:
        search = _Optuna(tune, len(earlier))
    except (ImportError, AssertionError) as error:
        raise EnvironmentFault(
            "tune.search is optuna, and the package is not installed",
            where="tune.search",
            fix="pip install 'raystill[optuna]', or set tune.search: random",
        ) from error
    for record in earlier:
        if record.outcome in ("complete", "stopped") and record.last is not None:
            search.remember(record)
    return search
