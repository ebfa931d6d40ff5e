"""Try resized models: what the labels cannot see (a literal ``view(-1, 512)``) breaks the forward pass."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from widthsearch.space.gating import Gating, consumers_of, statistics_of
from widthsearch.space.initialise import Initialisation, initialise
from widthsearch.space.labels import Freeze, Ids, Report
from widthsearch.space.module_stack import ModuleStack
from widthsearch.space.resize import compacted_copy, resized_copy
from widthsearch.space.tracer import (
    Trace,
    call,
    empty_copy,
    reference_kernels,
    tensors_in,
    to_device,
)
from widthsearch.space.variables import Variables, find_variables

JOINT_TRIALS = 2
LARGEST_SEARCH = 120  # resized models tried to find out what resizes together
TOLERANCE = 1e-3  # of the removal test, relative: wrong alignments are off by 0.01 and more


@dataclass(frozen=True, eq=False)
class _Tester:
    model: nn.Module
    example: Any
    trace: Trace
    initialisation: Initialisation

    def failure(self, variables: Variables, widths: Sequence[int]) -> str | None:
        """Why a model of these widths does not run as the original does; None if it does."""
        resized = resized_copy(self.model, self.trace, variables, widths, self.trace.device)
        if self.trace.device != "meta":
            initialise(resized, self.initialisation)  # its Python code reads values
        stack = ModuleStack(resized)
        inputs = to_device(self.example, self.trace.device)
        shapes: list[tuple[int, ...]] = []
        for training in (False, True):
            resized.train(training)
            try:
                with reference_kernels(self.trace.device):
                    shapes += [tuple(t.shape) for t in tensors_in(call(resized, inputs))]
            except Exception as error:
                lines = str(error).splitlines() or [""]
                where = f"in {stack.innermost!r}" if stack.innermost else "in the model's own forward"
                return f"the forward pass breaks {where}: {type(error).__name__}: {lines[0]}"
        if shapes == self.trace.output_shapes:
            return None
        return f"the output changes its shape {_first_difference(shapes, self.trace.output_shapes)}"


def _first_difference(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
    pairs = [(f, e) for f, e in zip(found, expected, strict=False) if f != e]
    return (
        f"to {pairs[0][0]} from {pairs[0][1]}" if pairs else f"to {len(found)} tensors from {len(expected)}"
    )


@dataclass(frozen=True)
class Change:
    """What verification changes: freeze one variable for a reason, or (no reason) tie several into one."""

    names: tuple[str, ...]
    reason: str | None = None


Changes = tuple[Sequence[Change], ...]


def verify(model: nn.Module, example: Any, trace: Trace, initialisation: Initialisation) -> Changes:
    """Rounds of changes, one after the other, until all that is left resizes freely."""
    tester = _Tester(model, example, trace, initialisation)
    numbers = random.Random(0)
    rounds: list[list[Change]] = []
    while True:
        variables = apply_changes(trace, rounds)
        if not variables.names:
            return tuple(rounds)
        if not _joint_failure(tester, variables, numbers):
            wrong = inexact(model, example, trace, variables)
            if not wrong:
                return tuple(rounds)
            rounds.append(_tie_or_freeze(variables, wrong))
            continue
        failing = dict(_failing(tester, variables, range(len(variables.names)), numbers))
        together = _merges(tester, variables, list(failing)) if failing else []
        merged = {name for change in together for name in change.names}
        rejected = [
            Change((name,), f"another width does not run: {reason}")
            for name, reason in failing.items()
            if name not in merged
        ]
        rounds.append([*rejected, *together] or [_first_that_breaks(tester, variables, numbers)])


def _merges(tester: _Tester, variables: Variables, failing: list[str]) -> list[Change]:
    """Variables that fail alone but resize together (the two halves of a chunk, heads and model width)."""

    def scaled(names: Sequence[str]) -> bool:
        pairs = zip(variables.names, variables.widths, strict=True)
        return tester.failure(variables, [3 * w if name in names else w for name, w in pairs]) is None

    merges: list[Change] = []
    left = list(failing)
    tries = LARGEST_SEARCH
    while len(left) > 1 and tries > 0:
        first = left[0]
        # Nearly always it is the next ones in order of execution; else all that still fails, made smaller.
        near = [[first, *left[1 : k + 1]] for k in (1, 2, 3) if k < len(left)] + [left]
        group = next((names for names in near if scaled(names)), None)
        tries -= len(near)
        if group is not None:
            for name in group[1:]:
                smaller = [n for n in group if n != name]
                tries -= 1
                if len(smaller) > 1 and scaled(smaller):
                    group = smaller
            widths = [variables.widths[variables.names.index(n)] for n in group]
            if math.gcd(*widths) > 1:
                merges.append(Change(tuple(group)))
        left = [n for n in left[1:] if group is None or n not in group]
    return merges


def apply_changes(trace: Trace, rounds: Sequence[Sequence[Change]]) -> Variables:
    """The variables after these rounds; names are those of the round's own variables."""
    freezes: list[Freeze] = []
    ties: list[tuple[Ids, Ids]] = []
    variables = find_variables(trace)
    for changes in rounds:
        for change in changes:
            units = [
                np.flatnonzero(variables.variable == variables.names.index(name)) for name in change.names
            ]
            if change.reason is None:
                ties.extend(_tie_in_step(variables, change.names, units))
                continue
            # Once frozen, a flattened form of the units is a group of its own: one report is enough.
            produced = any(np.isin(p.ids, units[0]).any() for p in trace.productions)
            report = Report.IF_PRODUCED if produced else Report.ALWAYS
            freezes.append(Freeze(units[0], change.reason, report))
        variables = find_variables(trace, freezes, ties)
    return variables


def _tie_in_step(
    variables: Variables, names: Sequence[str], units: Sequence[Ids]
) -> Iterator[tuple[Ids, Ids]]:
    """Tie variables that scale together: one unit of the merged variable is a block of each."""
    widths = [variables.widths[variables.names.index(name)] for name in names]
    merged = math.gcd(*widths)
    blocks = []
    for ids, width in zip(units, widths, strict=True):
        order = variables.position[ids] - variables.position[ids].min()
        blocks.append((ids, order * merged // width))
    leader = [blocks[0][0][blocks[0][1] == k][:1] for k in range(merged)]
    for ids, block in blocks:
        yield np.concatenate(leader)[block], ids


def _tie_or_freeze(variables: Variables, wrong: Sequence[tuple[str, str]]) -> list[Change]:
    """Equal parts of one dimension (``chunk``) only lose units together; the next round checks the tie."""
    width = dict(zip(variables.names, variables.widths, strict=True))
    changes = []
    left = dict(wrong)
    while left:
        name, reason = next(iter(left.items()))
        equal = tuple(n for n in left if width[n] == width[name])
        changes.append(Change(equal) if len(equal) > 1 else Change((name,), reason))
        left = {n: r for n, r in left.items() if n not in equal}
    return changes


def inexact(model: nn.Module, example: Any, trace: Trace, variables: Variables) -> list[tuple[str, str]]:
    """Variables of which closing units is not the same as removing them, and why they cannot be searched."""
    everyone = range(len(variables.names))

    if removal_error(model, example, trace, variables, everyone) < TOLERANCE:
        return []
    wrong = []
    for index, name in enumerate(variables.names):
        error = removal_error(model, example, trace, variables, [index])
        if error >= TOLERANCE:
            wrong.append((name, f"closing its units is not the same as removing them (by {error:.1g})"))
    return wrong or [(variables.names[-1], "closing units is not the same as removing them")]


def removal_error(
    model: nn.Module, example: Any, trace: Trace, variables: Variables, some: Sequence[int]
) -> float:
    """How far the network without some units is from that with their gates at 0, relative to its output."""
    numbers = np.random.default_rng(0)
    keep = [np.ones(w, dtype=bool) for w in variables.widths]
    for index in some:  # not the same share of each: equal cuts of two parts hide that the parts are tied
        width = variables.widths[index]
        keep[index] = numbers.permutation(width) >= min(width - 1, 1 + width // 4 + index % 3)
    live = empty_copy(model, "cpu")
    for tensor in live.parameters():
        if tensor.is_floating_point() and bool(tensor.min() == tensor.max()):
            # Zeros (of a fresh head) would hide every difference, ones many.
            tensor.data.add_(torch.randn_like(tensor), alpha=0.02)
    removed = compacted_copy(live, trace, variables, keep).eval()
    gating = Gating(
        live, variables.widths, consumers_of(trace, variables, 1), statistics_of(trace, variables)
    )
    inputs = to_device(example, "cpu")
    z = torch.from_numpy(np.concatenate(keep).astype(np.float32))
    with reference_kernels("cpu"):
        gating.put(z, inputs)
        try:
            closed = call(live.eval(), inputs)
        finally:
            gating.take_off()
        pairs = zip(tensors_in(closed), tensors_in(call(removed, inputs)), strict=True)
        errors = [
            float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
            for a, b in pairs
            if a.is_floating_point() and a.numel() and a.shape == b.shape
        ]
    return max((1.0 if math.isnan(e) else e for e in errors), default=0.0)


def _random_widths(variables: Variables, numbers: random.Random) -> list[int]:
    # Odd sizes have no hidden divisors: x2 and x1/2 pass where 12 heads must divide the width.
    odd = [max(3, int(w * numbers.uniform(0.3, 2.2)) | 1) for w in variables.widths]
    return [w + 2 if w == own else w for w, own in zip(odd, variables.widths, strict=True)]


def _joint_failure(tester: _Tester, variables: Variables, numbers: random.Random) -> str | None:
    for _ in range(JOINT_TRIALS):
        failure = tester.failure(variables, _random_widths(variables, numbers))
        if failure is not None:
            return failure
    return None


def _failing(
    tester: _Tester, variables: Variables, some: Sequence[int], numbers: random.Random
) -> Iterator[tuple[str, str]]:
    """Which of these variables break the model when resized alone, and how; found by halving."""
    other = _random_widths(variables, numbers)
    widths = [other[i] if i in some else w for i, w in enumerate(variables.widths)]
    failure = tester.failure(variables, widths)
    if failure is None:
        return
    if len(some) == 1:
        yield variables.names[some[0]], failure
        return
    middle = len(some) // 2
    yield from _failing(tester, variables, some[:middle], numbers)
    yield from _failing(tester, variables, some[middle:], numbers)


def _first_that_breaks(tester: _Tester, variables: Variables, numbers: random.Random) -> Change:
    """Each resizes alone but not together: the first that does not go with those before it."""
    for _ in range(JOINT_TRIALS):
        target = _random_widths(variables, numbers)
        widths = list(variables.widths)
        for index, name in enumerate(variables.names):
            widths[index] = target[index]
            failure = tester.failure(variables, widths)
            if failure is not None:
                return Change((name,), f"it does not resize independently of others: {failure}")
    return Change((variables.names[-1],), "it does not resize independently of others")
