"""One trial from start to end: build the network of a slot, train it, and say what came out.

Runs in a worker process and knows nothing of Optuna or Ray: what it returns is a plain dictionary of
trial attributes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from widthsearch.database import records
from widthsearch.database.folder import Folder
from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.plan import Plan, Slot, StudyPlan
from widthsearch.plans.pruners import PrunerPlan
from widthsearch.space import WidthSpace, trace
from widthsearch.study.data import digests_of, example_of, load_data
from widthsearch.study.fingerprint import changed_fields
from widthsearch.study.patterns import fixed_by
from widthsearch.study.study import Data, Study
from widthsearch.study.users_code import time_limit, users_code
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.controller import BudgetController, best_units, cut
from widthsearch.training.gates import Gates
from widthsearch.training.own_loop import OwnLoop
from widthsearch.training.pack import Pack, train_pack
from widthsearch.training.pruners.ranking import Aim, gated, gates_on, train_under
from widthsearch.training.pruners.sweep import sweep
from widthsearch.training.recipe_loop import Evaluation, RecipeLoop, seed_everything

log = logging.getLogger(__name__)


def build_space(study: Study, data: Data) -> WidthSpace:
    """Build the user's model from the study's seed and trace it.

    Raises :class:`UsageError` if the model cannot be built or does not run on the data.
    """
    seed_everything(study.seed)
    with users_code(what="model() raised "):
        model = study.model()
    if not isinstance(model, nn.Module):
        raise UsageError(f"model() returned {model!r:.60}; it must return a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"{type(model).__name__} has no parameter to train")
    example = (
        example_of(data[0], collate=study.recipe.collate_fn)[0] if study.example is None else study.example
    )
    first, *more = study.examples or [example]
    with users_code(what=f"{type(model).__name__} cannot be traced: "):
        options = {name: getattr(study, name) for name in ("init", "buffers", "keep_heads", "output")}
        space = trace(model, first, more=more, **options)
    return space.without(fixed_by(study.search, study.fix, space.modules))


class TrialRunner:
    """Runs the trials of one study in this process: loads the data and traces the model once.

    ``checkpoints``: the study's folder for them (a path or URL), and its identity; ``fingerprint``: what the
    driver knows of the data.  Raises :class:`UsageError` if there is other data here.
    """

    def __init__(
        self,
        study: Study,
        plan: StudyPlan,
        checkpoints: tuple[str, str] | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        torch.set_num_threads(study.threads)
        self._timeout = study.timeout
        self._plans = plan
        self._folder = Folder(checkpoints[0]) if checkpoints is not None else None
        self._identity = checkpoints[1] if checkpoints is not None else ""
        data = load_data(study)
        if fingerprint is not None:
            expected = {k: v for k, v in fingerprint.items() if k.startswith("data.")}
            if other := changed_fields(expected, digests_of(data, expected)):
                here = socket.gethostname()
                raise UsageError(f"the data on {here} is not that of the launch: {'; '.join(other)}")
        self.space = build_space(study, data)
        self.loop: OwnLoop | RecipeLoop
        self.measure_loop: OwnLoop | RecipeLoop
        if study.train is not None:
            self.loop = self.measure_loop = OwnLoop(study, data)
        else:
            loop = RecipeLoop(study.recipe, data)
            # A measure ends when its gates have closed: after that hardly any changes sides.
            epochs = study.measure_length * study.recipe.epochs
            self.loop, self.measure_loop = loop, loop.of_epochs(epochs, closing=1.0)

    def close(self) -> None:
        """Nothing is left running."""

    def run_all(self, slots: Sequence[Slot]) -> list[dict[str, Any]]:
        """Train the networks of these slots, as one if there are several; the attributes of each trial.

        Of one that ended without a finite loss, and of all where the training failed, it is ``error`` alone.
        Raises :class:`UsageError` where no other try would help.
        """
        try:
            return [self.run(slots[0])] if len(slots) == 1 else self._run_together(slots)
        except TrainingError as error:
            return [{"error": str(error)} for _ in slots]

    def run(self, slot: Slot, trained: Callable[[nn.Module], object] = lambda _: None) -> dict[str, Any]:
        """Train the slot's network, from its checkpoint if there is one.

        ``trained`` is handed the network of a plain training at its end.  Returns the trial's attributes and
        ``val_loss``; under ``warnings``, if there are any, what a person should know.  Raises
        :class:`TrainingError` if the run ended without a finite loss or took too long, and
        :class:`UsageError` where no other try would help (a checkpoint cannot be written).
        """
        start = time.perf_counter()
        checkpoint = self._checkpoint([slot])
        plan = self._plans.plan_of(slot)
        seed = slot.random_seed(plan.seed)
        widths = {v: int(slot.widths[v]) for v in plan.widths}
        seed_everything(seed)
        samples: float
        with time_limit(self._timeout), _what_to_lower(), users_code(TrainingError):
            if slot.kind == "measure":
                outcome, samples = self._measure(plan, widths, seed, checkpoint)
            elif slot.kind == "pruned":
                outcome, samples = self._pruned(plan, widths, seed)
            elif slot.kind == "sweep":
                outcome, samples = self._sweep(slot, widths, seed)
            else:
                net = self.space.resize(widths)
                samples = self.loop.fit(net, seed, checkpoint)
                outcome = self._evaluated(net, test=_is_fresh(slot, plan))
                trained(net)
        seconds = checkpoint.seconds if checkpoint else time.perf_counter() - start
        return self._attributes(outcome, plan.cost.at(widths), samples, seconds, checkpoint)

    def _attributes(
        self,
        outcome: Mapping[str, Any],
        cost: Mapping[str, float],
        samples: float,
        seconds: float,
        checkpoint: Checkpoint | None,
    ) -> dict[str, Any]:
        """What a trial says of its training."""
        return {
            **outcome,
            **cost,  # records.MACS, records.PARAMS, and latency where there is a budget of it
            # A backward pass costs two forward passes.
            records.TRAINING_MACS: round(3 * cost["macs"] * samples),
            records.SECONDS: round(seconds, 3),
            records.HOST: socket.gethostname(),
            **({"warnings": checkpoint.warnings} if checkpoint and checkpoint.warnings else {}),
        }

    def _run_together(self, slots: Sequence[Slot]) -> list[dict[str, Any]]:
        """As :meth:`run`, of networks that differ in their seeds alone."""
        start = time.perf_counter()
        plan, checkpoint = self._plans.plan_of(slots[0]), self._checkpoint(slots)
        widths = {v: int(slots[0].widths[v]) for v in plan.widths}
        # A study with an own loop has no packs: see pack.why_alone.
        loop = cast("RecipeLoop", self.measure_loop if slots[0].kind == "measure" else self.loop)
        limit = None if self._timeout is None else self._timeout * len(slots)
        with time_limit(limit), _what_to_lower(), users_code(TrainingError):
            spaces, pack = self._pack(plan, slots, widths, loop)
            losses = train_pack(pack, loop, checkpoint)
            outcomes = []
            for i, (slot, loss) in enumerate(zip(slots, losses, strict=True)):
                try:
                    if not math.isfinite(loss):
                        raise TrainingError(f"training loss is {loss}")
                    if slot.kind == "measure":
                        with pack.gated[i][0].attached():
                            outcomes.append(self._cut(spaces[i], *pack.gated[i], plan))
                    else:
                        outcomes.append(self._evaluated(pack.nets[i], test=_is_fresh(slot, plan)))
                except TrainingError as error:  # of this network alone
                    outcomes.append({"error": str(error)})
        seconds = checkpoint.seconds if checkpoint else time.perf_counter() - start
        of_each = (plan.cost.at(widths), loop.samples, seconds / len(slots), checkpoint)
        return [o if "error" in o else self._attributes(o, *of_each) for o in outcomes]

    def _pack(
        self, plan: Plan, slots: Sequence[Slot], widths: Mapping[str, int], loop: RecipeLoop
    ) -> tuple[list[WidthSpace], Pack]:
        """The networks as each would be trained alone; of a measure with their width spaces and gates."""
        seeds = [slot.random_seed(plan.seed) for slot in slots]
        nets, spaces, gated = [], [], []
        for seed in seeds:
            seed_everything(seed)
            if slots[0].kind == "measure":
                space = self.space.at(widths)
                gated.append(gates_on(space, loop, Aim.of(plan)))
                spaces.append(space)
                nets.append(space.model)
            else:
                nets.append(self.space.resize(widths))
        return spaces, Pack(nets, seeds, spaces[0] if spaces else None, gated)

    def _checkpoint(self, slots: Sequence[Slot]) -> Checkpoint | None:
        """Of one slot, or of several that are trained together: under the name of the one told last."""
        if self._folder is None:
            return None
        identity = " ".join([self._identity, *(f"{s.key} {sorted(s.widths.items())}" for s in slots)])
        return Checkpoint(self._folder, slots[-1].file, hashlib.sha256(identity.encode()).hexdigest())

    def _measure(
        self, plan: Plan, widths: Mapping[str, int], seed: int, checkpoint: Checkpoint | None
    ) -> tuple[dict[str, Any], int]:
        """A training of the over-wide network, gated or by another pruner, cut to the budget at its end."""
        space, loop, aim = self.space.at(widths), self.measure_loop, Aim.of(plan)
        if plan.pruner != "l0":
            scores, samples = train_under(plan.pruner, space, loop, aim, seed, checkpoint)
            keep = cut(scores, widths, plan.constraints())
            evaluation = loop.evaluate(space.compact(keep), "validation")
            return _losses(evaluation) | _kept({v: int(k.sum()) for v, k in keep.items()}, widths), samples
        with gated(space, loop, aim, seed, checkpoint) as (gates, controller, samples):
            if isinstance(loop, OwnLoop):
                loop.check_steps(controller.taken)
            return self._cut(space, gates, controller, plan), samples

    def _cut(
        self, space: WidthSpace, gates: Gates, controller: BudgetController, plan: Plan
    ) -> dict[str, Any]:
        """Cut a gated network to the budget, and evaluate it so; the gates are on it, and stay."""
        keep = cut(gates.log_alpha, space.widths, plan.constraints())
        gates.mask = np.concatenate(list(keep.values()))
        evaluation = self.measure_loop.evaluate(space.model, "validation")
        kept = {v: int(k.sum()) for v, k in keep.items()}
        price, cost = controller.outcome()
        over = ", ".join(f"{share:.3f} times its {resource}" for resource, share in cost.items())
        log.info("gates: price %.3g at the end, expected cost %s before the cut; kept %s", price, over, kept)
        return _losses(evaluation) | _kept(kept, space.widths)

    def _pruned(self, plan: Plan, widths: Mapping[str, int], seed: int) -> tuple[dict[str, Any], int]:
        """A gated training of the over-wide network, cut by the same share in every layer, trained again.

        It has no checkpoints: interrupted, it starts again.
        """
        space = self.space.at(widths)
        log_alpha, samples = train_under("l0", space, self.loop, Aim.of(plan), seed)
        kept = plan.cut_equally(widths)
        net = space.compact(best_units(log_alpha, widths, kept))
        samples += self.loop.fit(net, seed)
        return self._evaluated(net, test=True) | _kept(kept, widths), samples

    def _sweep(self, slot: Slot, widths: Mapping[str, int], seed: int) -> tuple[dict[str, Any], float]:
        """The over-wide network, pruned to one level after the other.  It has no checkpoints either."""
        # Only a comparison of pruners has such slots, and it is refused for a study with an own loop.
        plan, loop = cast("PrunerPlan", self._plans), cast("RecipeLoop", self.loop)
        assert slot.branch is not None
        levels, samples = sweep(slot.branch.arm, plan, self.space.at(widths), loop, seed)
        return {"val_loss": levels[-1]["val_loss"], records.LEVELS: levels}, samples

    def _evaluated(self, net: nn.Module, *, test: bool) -> dict[str, Any]:
        outcome = _losses(self.loop.evaluate(net, "validation"))
        if test and "test" in self.loop.splits:
            on_test = self.loop.evaluate(net, "test")
            outcome |= {records.TEST_LOSS: on_test.loss, records.TEST_ACCURACY: on_test.accuracy}
        return outcome


@contextmanager
def _what_to_lower() -> Iterator[None]:
    """Where the memory of a device is full, say what takes less of it."""
    try:
        yield
    except TrainingError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        advice = "lower Recipe(batch_size=...), Study(over=...) for measures, or --workers: fewer at a time"
        raise TrainingError(f"{error}; {advice}") from error


def _is_fresh(slot: Slot, plan: Plan) -> bool:
    """Whether nothing is selected by it: the test split is for the trainings of the final report alone."""
    return slot.kind == "report" or slot.replica not in plan.selecting


def _kept(kept: Mapping[str, int], widths: Mapping[str, int]) -> dict[str, Any]:
    return {records.KEPT: dict(kept), records.PRUNE_RATIO: {v: 1 - kept[v] / widths[v] for v in widths}}


def _losses(validation: Evaluation) -> dict[str, Any]:
    return {"val_loss": validation.loss, records.ACCURACY: validation.accuracy}
