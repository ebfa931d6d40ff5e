"""Try resized models: what the labels cannot see (a literal ``view(-1, 512)``) breaks the forward pass."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import traceback
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from widthsearch.errors import describe_error
from widthsearch.space.copies import call, outputs_of, reference_kernels, to_device
from widthsearch.space.initialise import Initialisation, initialise
from widthsearch.space.labels import Freeze, Ids, Report
from widthsearch.space.module_stack import ModuleStack
from widthsearch.space.recorder import Trace
from widthsearch.space.removal import inexact
from widthsearch.space.resize import resized_copy
from widthsearch.space.routing import keep_what_may_not_run, kept_beside
from widthsearch.space.tangles import Change, Failure, Tangles, random_widths
from widthsearch.space.variables import Frozen, Variables, find_variables


def _failure(
    model: nn.Module,
    examples: Sequence[Any],
    trace: Trace,
    initialisation: Initialisation,
    variables: Variables,
    widths: Sequence[int],
    modes: Sequence[bool] = (False, True),
) -> Failure | None:
    """How a model of these widths does not run as the original does; None if it does.

    ``modes``: whether to run it in train mode, one after the other.
    """
    resized = resized_copy(model, trace, variables, widths, trace.device)
    if trace.device != "meta":
        initialise(resized, initialisation)  # its Python code reads values
    stack = ModuleStack(resized)
    inputs = [to_device(example, trace.device) for example in examples]
    for training in modes:
        resized.train(training)
        expected = trace.output_shapes[training]
        try:
            with reference_kernels(trace.device):
                shapes = [tuple(t.shape) for x in inputs for t in outputs_of(call(resized, x), trace.counts)]
        except Exception as error:
            where = f"in {stack.innermost!r}" if stack.innermost else "in the model's own forward"
            said = f"the forward pass breaks {where}: {describe_error(error)}"
            deepest = traceback.extract_tb(error.__traceback__)[-1]
            return Failure(stack.innermost, said, training, (deepest.filename, deepest.lineno or 0))
        if shapes != expected:
            pairs = zip(shapes, expected, strict=False)
            counts = f"{len(shapes)} tensors", len(expected)
            now, before = next((pair for pair in pairs if pair[0] != pair[1]), counts)
            return Failure("", f"the output changes its shape to {now} from {before}", training)
    return None


Changes = tuple[Sequence[Change], ...]
JOINT_TRIALS = 2  # of a model in which every variable has another width


def verify(
    model: nn.Module, examples: Sequence[Any], trace: Trace, initialisation: Initialisation
) -> Changes:
    """Rounds of changes, one after the other, until all that is left resizes freely."""
    numbers = random.Random(0)
    keep_what_may_not_run(model, examples, trace, initialisation)
    rounds = [first] if (first := _projections(model, trace)) else []
    if beside := kept_beside(trace, apply_changes(trace, rounds)):
        rounds.append([Change((name,), reason) for name, reason in beside.items()])
    while True:
        variables = apply_changes(trace, rounds)
        if not variables.names:
            return tuple(rounds)
        test = functools.partial(_failure, model, examples, trace, initialisation, variables)
        failures = (test(random_widths(variables, numbers)) for _ in range(JOINT_TRIALS))
        failure = next(filter(None, failures), None)
        if failure is not None:
            in_that_mode = functools.partial(test, modes=(failure.training,))
            rounds.append(Tangles(in_that_mode, trace, variables, numbers).changes())
        elif wrong := inexact(model, examples, trace, variables):
            rounds.append(_tie_or_freeze(trace, variables, wrong))
        elif untypable := _of_one_width(model, trace, variables):
            rounds.append(untypable)
        else:
            return tuple(rounds)


def _projections(model: nn.Module, trace: Trace) -> list[Change]:
    """What ``nn.LSTM`` projects to is narrower than its state: they keep their ratio, or their widths."""
    changes: list[Change] = []
    for place, module in model.named_modules():
        if not isinstance(module, nn.LSTM) or not module.proj_size:
            continue
        variables = apply_changes(trace, [])
        name = f"{place}.weight_hr_l0".lstrip(".")
        axes = [trace.axes[name, dim] for dim in (0, 1) if (name, dim) in trace.axes]
        names = tuple(sorted({v for ids in axes for v in variables.among(ids)}, key=variables.names.index))
        if len(names) == 2 and math.gcd(*(variables.width[v] for v in names)) > 1:
            changes.append(Change(names))
        else:
            reason = f"{place}: nn.LSTM needs a hidden size above its proj_size"
            changes += [Change((v,), reason) for v in names]
    return changes


def _of_one_width(model: nn.Module, trace: Trace, variables: Variables) -> list[Change]:
    """``nn.MultiheadAttention`` has one ``embed_dim``, for what it reads, its heads and what it makes.

    A resized copy of it runs with others, but nobody could type them.
    """
    axes = (("in_proj_weight", 1), ("q_proj_weight", 1), ("out_proj.weight", 1), ("out_proj.weight", 0))
    for place, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        found = [(f"{place}.{name}".lstrip("."), dim) for name, dim in axes]
        forms = [variables.form(trace.axes[axis]) for axis in found if axis in trace.axes]
        if len(set(forms)) < 2:
            continue
        names = tuple(v for k, v in enumerate(variables.names) if any(form[0][k] for form in forms))
        single = all(sum(map(bool, form[0])) == 1 and not form[1] for form in forms)
        if single and math.gcd(*(variables.width[v] for v in names)) > 1:
            return [Change(names)]
        reason = (
            f"{place}: nn.MultiheadAttention reads and makes embed_dim units, and one of them cannot follow"
        )
        return [Change((v,), reason) for v in names]
    return []


def apply_changes(trace: Trace, rounds: Sequence[Sequence[Change]]) -> Variables:
    """The variables after these rounds; names are those of the round's own variables."""
    freezes: list[Freeze] = []
    ties: list[tuple[Ids, Ids]] = []
    rejected: list[Frozen] = []
    variables = find_variables(trace)
    for changes in rounds:
        for change in changes:
            if change.states is not None:
                place, axis = change.states
                trace.stated[place] = ((trace.axes[axis],), Fraction(1))
                continue
            if not variables.width.keys() >= set(change.names):  # of layers that do not run at these weights
                continue
            units = [np.flatnonzero(variables.variable == variables.names.index(v)) for v in change.names]
            if change.reason is None:
                ties.extend(_tie_in_step(variables, change, units))
                continue
            # Once frozen, a flattened form of the units is a group of its own: one report is enough.
            produced = any(np.isin(ids, units[0]).any() for _, ids in trace.productions)
            report = Report.IF_PRODUCED if produced else Report.ALWAYS
            freezes.append(Freeze(units[0], change.reason, report))
            rejected.append(Frozen(change.names[0], variables.width[change.names[0]], change.reason))
        variables = find_variables(trace, freezes, ties)
    widths = {(f.name, f.reason): f.width for f in rejected}  # as they were called while they were free
    frozen = (dataclasses.replace(f, width=widths.get((f.name, f.reason), f.width)) for f in variables.frozen)
    told = {f.reason for f in variables.frozen}
    untold = tuple(f for f in rejected if f.reason not in told)  # what remains of it is frozen all the same
    return dataclasses.replace(variables, frozen=(*frozen, *untold))


def _tie_in_step(variables: Variables, change: Change, units: Sequence[Ids]) -> Iterator[tuple[Ids, Ids]]:
    """Tie variables that scale together: one unit of the merged variable is a block of each."""
    widths = [variables.width[name] for name in change.names]
    merged = math.gcd(*widths) // change.block
    blocks = []
    for ids, width in zip(units, widths, strict=True):
        order = variables.position[ids] - variables.position[ids].min()
        blocks.append((ids, order * merged // width))
    leader = [blocks[0][0][blocks[0][1] == k][:1] for k in range(merged)]
    for ids, number in blocks:
        yield np.concatenate(leader)[number], ids


def _tie_or_freeze(trace: Trace, variables: Variables, wrong: Sequence[tuple[str, str]]) -> list[Change]:
    """Equal parts of one dimension (``chunk``) only lose units together; the next round checks the tie."""
    width = variables.width
    shared = [set(variables.among(ids)) for ids in trace.axes.values()]
    changes = []
    left = dict(wrong)
    while left:
        name, reason = next(iter(left.items()))
        beside = set().union({name}, *(names for names in shared if name in names))
        equal = tuple(n for n in left if width[n] == width[name] and n in beside)
        changes.append(Change(equal) if len(equal) > 1 else Change((name,), reason))
        left = {n: r for n, r in left.items() if n not in equal}
    return changes
