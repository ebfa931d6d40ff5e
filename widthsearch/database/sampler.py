"""``GrowShrinkSampler``: the rule behind Optuna's ``ask`` and ``tell``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from widthsearch.database.records import PLAN, forgiven_in, plan_of, runs_of
from widthsearch.maths import rule
from widthsearch.plans.history import History
from widthsearch.plans.plan import Done, Failed, Plan, Slot, Wait


def search_space(plan: Plan) -> dict[str, BaseDistribution]:
    """One integer parameter per width variable, up to the largest width that any network could have."""
    largest = rule.largest_widths(plan.constraints(max(plan.over, 1.0)))
    return {v: IntDistribution(1, largest[v]) for v in plan.widths}


class GivenWidths(RandomSampler):
    """Hands out widths that were worked out already, for the one who asks next: the driver."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self._widths = widths

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The width of this variable."""
        return self._widths[param_name]


class GrowShrinkSampler(BaseSampler):
    """Proposes the widths of the next training run from the trials in the database, and from nothing else.

    Stateless: two samplers that look at the same trials propose the same.  It works on studies that carry a
    plan (as ``widthsearch launch`` makes them); parameters that are no width variables, and studies without
    a plan, are sampled at random (``seed`` is for those alone).
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        """Reseed the sampler of parameters that are no width variables."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The width variables of the study's plan; nothing for a study without one."""
        self._raise_error_if_multi_objective(study)
        return search_space(plan_of(study).plan) if PLAN in study.user_attrs else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The widths of the next training run; once the search is done, the recommended widths.

        Raises ``RuntimeError`` if the next widths depend on trials that still run.
        """
        self._raise_error_if_multi_objective(study)
        if PLAN not in study.user_attrs:
            return {name: self.sample_independent(study, trial, name, d) for name, d in search_space.items()}
        widths = self._next_widths(study)
        return {name: widths[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value: only for parameters that are no width variables."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _next_widths(self, study: optuna.Study) -> dict[str, int]:
        plan, runs = plan_of(study), runs_of(study.get_trials(deepcopy=False), forgiven_in(study))
        match step := plan.next_step(runs):
            case Slot():
                return dict(step.widths)
            case Done():
                if plan.kind != "search":
                    raise RuntimeError(f"{step.because}: there is nothing left to train")
                best = History(plan.plan, runs).recommended(plan.plan.rounds)
                return dict(best.widths) if best is not None else plan.plan.baseline
            case Wait():
                raise RuntimeError("the next widths depend on trials that still run; ask when one has ended")
            case Failed():
                raise RuntimeError(step.because)
