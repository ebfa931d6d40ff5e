"""The pruners by name, and a comparison of them as a plan of its own: one training run per pruner and seed.

Every run trains the same over-wide network by the recipe, then goes down the levels: at each it prunes the
network of the level before and trains it for as many epochs again (see ``pruners/sweep.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from widthsearch.maths.rule import Constraints
from widthsearch.plans.history import state_of
from widthsearch.plans.plan import Branch, Done, Failed, Plan, Run, Slot, Step, StudyKind, StudyPlan, Wait
from widthsearch.plans.settings import MEASURES

#: What removes single weights, not units.
OF_WEIGHTS = ("obd",)
#: All that ``widthsearch pruners`` compares.
PRUNERS = (*MEASURES, "obd-neurons", *OF_WEIGHTS)
#: Shares of the over-wide network's MACs (of its weights, for pruners of weights) that are kept.
LEVELS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)


@dataclass(frozen=True)
class PrunerPlan(StudyPlan):
    """Which pruners are compared, at which levels (shares kept, falling); ``plan`` is that of the study.

    Its over-wide network is pruned, on as many seeds as its ``seeds``.
    """

    kind: ClassVar[StudyKind] = "pruners"
    grows: ClassVar[bool] = False

    pruners: tuple[str, ...]
    levels: tuple[float, ...] = LEVELS

    def plan_of(self, slot: Slot) -> Plan:
        """The plan that a slot belongs to: that of the study."""
        return self.plan

    def share(self, widths: Mapping[str, int]) -> float:
        """The MACs of a network, as a share of the over-wide one's."""
        return self.plan.cost.at(widths)["macs"] / self.plan.cost.at(self.plan.over_wide_seed)["macs"]

    def constraints(self, level: float) -> Constraints:
        """What the network of a level must obey: a share of the over-wide network's MACs.

        Two units of every variable stay: a dimension of size 1 could not be traced again.
        """
        macs = level * self.plan.cost.at(self.plan.over_wide_seed)["macs"]
        minimum = {v: max(2, m) for v, m in self.plan.minimum.items()}
        return Constraints(self.plan.cost, {"macs": macs}, minimum, dict.fromkeys(minimum, 1))

    def slots(self) -> list[Slot]:
        """All training runs, in the order in which they are handed out: seed by seed."""
        return [
            Slot("sweep", -1, k, self.plan.over_wide_seed, branch=Branch(0, 0, pruner))
            for k in range(self.plan.seeds)
            for pruner in self.pruners
        ]

    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""
        by_slot: dict[tuple[int, str], list[Run]] = {}
        for run in runs:
            if run.branch is not None:
                by_slot.setdefault((run.key[2], run.branch.arm), []).append(run)
        slots, found = self.slots(), []
        for slot in slots:
            assert slot.branch is not None
            found.append(state_of(by_slot.get((slot.replica, slot.branch.arm), []), self.plan.retries))
        if "open" in found:
            return slots[found.index("open")]
        if "running" in found:
            return Wait()
        if "complete" not in found:
            return Failed(f"every run failed: {[run.error for of in by_slot.values() for run in of][-1]}")
        return Done(-1, 0.0, "every pruner has been at every level")

    def undecided(self, runs: Iterable[Run]) -> list[Slot]:
        """All slots: no run depends on another."""
        return self.slots()

    def expected(self) -> dict[str, int]:
        """Trials per kind."""
        return {"sweep": len(self.pruners) * self.plan.seeds}

    def headline(self) -> str:
        """What the study will do, in one line."""
        levels = ", ".join(f"{level:.3g}" for level in self.levels)
        return f"{', '.join(self.pruners)} at levels {levels} of the over-wide network; {self._variables}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrunerPlan:
        """The inverse of :meth:`to_json`."""
        return cls(Plan.from_json(data["plan"]), tuple(data["pruners"]), tuple(data["levels"]))
