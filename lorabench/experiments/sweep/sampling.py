"""Who proposes the values of a trial, and who gives one up: Optuna's samplers and pruners, or W&B's search library."""

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lorabench.experiments.sweep.parameters import Value
from lorabench.experiments.sweep.plan import SweepPlan

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Backend = Literal["optuna", "wandb"]
Pruning = Literal["auto", "none"]
# Trials that run to their end before others are held against them, and that an epoch's median is taken over.
_BEFORE_PRUNING = 5
_FOR_A_MEDIAN = 3
_MOST_RANDOM = 10


def make_sampler(plan: SweepPlan, backend: Backend, number: int) -> "BaseSampler":
    """For one trial: seeded by the sweep's seed and the trial, so that no two workers, and no later start, repeat one.

    Args:
        number: of the trial, from 1.
    """
    from optuna.samplers import RandomSampler, TPESampler

    seed = random.Random(f"{plan.seed} {number}").getrandbits(32)
    if backend == "wandb":
        return _wandb_sampler(plan, seed)
    if plan.search.method != "bayes":
        return RandomSampler(seed=seed)
    # Those under way count as bad ones (constant_liar), so that workers do not all try the same corner.
    first = min(_MOST_RANDOM, max(plan.total // 3, 2))
    return TPESampler(seed=seed, n_startup_trials=first, multivariate=True, constant_liar=True)


def make_pruner(plan: SweepPlan, pruning: Pruning) -> "BasePruner":
    """`early_terminate` where the file has it; else the median of other trials after the same epoch."""
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    halving = plan.search.halving
    if pruning == "none":
        return NopPruner()
    if halving is not None:
        return SuccessiveHalvingPruner(min_resource=halving.first, reduction_factor=halving.factor)
    return MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_min_trials=_FOR_A_MEDIAN)


def _wandb_sampler(plan: SweepPlan, seed: int) -> "BaseSampler":
    """W&B's own search (the package `sweeps`, which its local controller uses), as a sampler of Optuna."""
    import numpy
    from optuna.distributions import BaseDistribution
    from optuna.samplers import RandomSampler
    from optuna.trial import TrialState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, whose first form its classes have
        import sweeps

    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "killed", TrialState.RUNNING: "running"}
    search = plan.search
    config = {key: search.raw[key] for key in ("method", "metric", "parameters")}

    def run_of(trial: "FrozenTrial") -> Any:
        values = {**search.fixed, **trial.params}
        history = [value for _, value in sorted(trial.intermediate_values.items())]
        history += [] if trial.value is None else [trial.value]
        return sweeps.SweepRun(
            name=str(trial.number),
            state=sweeps.RunState(states[trial.state]),
            # W&B's file may write a name with hyphens.
            config={key: {"value": values[key.replace("-", "_")]} for key in search.raw["parameters"]},
            sampledHistory=[{search.raw["metric"]["name"]: value} for value in history],
        )

    class WandbSampler(RandomSampler):
        """All values of a trial at once; what it has none for is drawn at random."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return {parameter.name: parameter.distribution() for parameter in search.searched}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Value]:
            known = study.get_trials(deepcopy=False, states=tuple(states))
            whole = [other for other in known if len(other.params) == len(search.searched)]
            # The library draws from the generators that numpy and Python share with everybody.
            before = numpy.random.get_state(), random.getstate()
            numpy.random.seed(seed)
            random.seed(seed)
            try:
                proposed = sweeps.next_run(config, [run_of(other) for other in whole])
            finally:
                numpy.random.set_state(before[0])
                random.setstate(before[1])
            return {} if proposed is None else _plain(proposed.config, [item.name for item in search.searched])

    return WandbSampler(seed=seed)


def _plain(config: Any, names: Sequence[str]) -> dict[str, Value]:
    """W&B's values by flag, those of numpy as Python's own."""
    import numpy

    values = {key.replace("-", "_"): entry["value"] for key, entry in config.items()}
    return {name: value.item() if isinstance(value := values[name], numpy.generic) else value for name in names}
