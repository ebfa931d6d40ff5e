"""Try resized models: what the labels cannot see (a literal ``view(-1, 512)``) breaks the forward pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from widthsearch.space.initialise import Initialisation, initialise
from widthsearch.space.labels import Freeze, Report
from widthsearch.space.resize import resized_copy
from widthsearch.space.tracer import ModuleStack, Trace, reference_kernels, tensors_in, to_device
from widthsearch.space.variables import Variables, find_variables

JOINT_TRIALS = 2


@dataclass(frozen=True, eq=False)
class _Tester:
    model: nn.Module
    example: tuple[Any, ...]
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
                    shapes += [tuple(t.shape) for t in tensors_in(resized(*inputs))]
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


def verify(
    model: nn.Module, example: tuple[Any, ...], trace: Trace, initialisation: Initialisation
) -> tuple[list[tuple[str, str]], ...]:
    """Rounds of (variable, reason) to reject, one after the other, until all that is left resizes freely."""
    tester = _Tester(model, example, trace, initialisation)
    numbers = random.Random(0)
    rounds: list[list[tuple[str, str]]] = []
    while True:
        variables = apply_rejections(trace, rounds)
        if not variables.names or not _joint_failure(tester, variables, numbers):
            return tuple(rounds)
        rejected = []
        for index, name in enumerate(variables.names):
            reason = _single_failure(tester, variables, index)
            if reason is not None:
                rejected.append((name, f"another width does not run: {reason}"))
        rounds.append(rejected or [_first_that_breaks(tester, variables, numbers)])


def apply_rejections(trace: Trace, rounds: Sequence[Sequence[tuple[str, str]]]) -> Variables:
    """The variables after these rounds; names are those of the round's own variables."""
    freezes: list[Freeze] = []
    variables = find_variables(trace)
    for rejected in rounds:
        for name, reason in rejected:
            ids = np.flatnonzero(variables.variable == variables.names.index(name))
            # Once frozen, a flattened form of the units is a group of its own: one report is enough.
            produced = any(np.isin(p.ids, ids).any() for p in trace.productions)
            freezes.append(Freeze(ids, reason, Report.IF_PRODUCED if produced else Report.ALWAYS))
        variables = find_variables(trace, freezes)
    return variables


def _random_widths(variables: Variables, numbers: random.Random) -> list[int]:
    # Odd sizes have no hidden divisors: x2 and x1/2 pass where 12 heads must divide the width.
    return [max(2, int(w * numbers.uniform(0.3, 2.2)) | 1) for w in variables.widths]


def _joint_failure(tester: _Tester, variables: Variables, numbers: random.Random) -> str | None:
    for _ in range(JOINT_TRIALS):
        failure = tester.failure(variables, _random_widths(variables, numbers))
        if failure is not None:
            return failure
    return None


def _single_failure(tester: _Tester, variables: Variables, index: int) -> str | None:
    width = variables.widths[index]
    for trial in (2 * width + 1, width + 1, max(2, width // 2)):
        widths = list(variables.widths)
        widths[index] = trial
        failure = tester.failure(variables, widths)
        if failure is not None:
            return failure
    return None


def _first_that_breaks(tester: _Tester, variables: Variables, numbers: random.Random) -> tuple[str, str]:
    """Each resizes alone but not together: the first that does not go with those before it."""
    for _ in range(JOINT_TRIALS):
        target = _random_widths(variables, numbers)
        widths = list(variables.widths)
        for index, name in enumerate(variables.names):
            widths[index] = target[index]
            failure = tester.failure(variables, widths)
            if failure is not None:
                return name, f"it does not resize independently of others: {failure}"
    return variables.names[-1], "it does not resize independently of others"
