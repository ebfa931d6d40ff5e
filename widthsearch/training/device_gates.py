"""Gates and their controller on a GPU: the same mathematics in torch, so that no step waits for the CPU.

What a checkpoint and the cut read stays in NumPy (see :mod:`.gates`, :mod:`.controller`); it is brought up to
date whenever it is asked for.  While a network trains, logits, moments and gradient stay on the device.  Only
the price is worked out on the CPU, once in several steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widthsearch.maths.cost import Cost
from widthsearch.space import WidthSpace
from widthsearch.training.controller import BudgetController
from widthsearch.training.gates import (
    HIGH,
    LOW,
    OPEN_SHIFT,
    TEMPERATURE,
    Gates,
    Pending,
    refuse_what_gates_cannot_do,
)

#: Steps from one price to the next, and how many prices a training has at least.
PERIOD, PRICES = 10, 50


class DeviceGates(Gates):
    """:class:`Gates` whose logits live where the network is, as ``logits`` (U,)."""

    def __init__(self, space: WidthSpace) -> None:
        super().__init__(space)
        self.logits = torch.from_numpy(self.log_alpha.copy()).to(self._parameter.device)
        self._rows: list[Tensor] = []  # the noise to come, on the device

    def state_dict(self) -> dict[str, Any]:
        """As that of gates on the CPU."""
        self._read()
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.logits.copy_(torch.from_numpy(self.log_alpha))
        self._rows.clear()

    def settle(self) -> None:
        """As that of gates on the CPU; ``log_alpha`` is up to date then."""
        super().settle()
        self._read()

    def _read(self) -> None:
        self.log_alpha[:] = self.logits.cpu().numpy()  # in place: the controller holds on to it

    def values(self, training: bool, pending: Pending) -> Tensor:
        """The gates of one forward pass, (U,); in training mode drawn on the device."""
        if not training:
            self._read()
            return super().values(training, pending)
        refuse_what_gates_cannot_do(self.logits.device)
        s = torch.sigmoid((self._next_row() + self.logits) / TEMPERATURE)  # equations 10 and 11
        z = (s * (HIGH - LOW) + LOW).clamp_(0, 1)
        slope = (z - LOW) * (HIGH - z) / ((HIGH - LOW) * TEMPERATURE) * ((z > 0) & (z < 1))
        if pending.to is not None:
            hook = lambda gradient: pending.add(gradient * slope)  # noqa: E731
            z.requires_grad_().register_hook(hook)  # type: ignore[no-untyped-call]
        return z

    def _next_row(self) -> Tensor:
        """The same noise as on the CPU, moved in blocks."""
        own = self._next_noise()
        if not self._rows:
            block = torch.from_numpy(np.stack([*self._noise, own]))
            self._rows = list(block.to(self.logits.device, self.logits.dtype))
        return self._rows.pop()


class DeviceController(BudgetController):
    """:class:`BudgetController` for :class:`DeviceGates`: its :meth:`step` takes a gradient on the device."""

    def __init__(
        self,
        gates: DeviceGates,
        widths: Mapping[str, int],
        cost: Cost,
        budget: Mapping[str, float],
        *,
        steps: int,
        pressure: str = "neurons",
    ) -> None:
        super().__init__(gates.log_alpha, widths, cost, budget, steps=steps, pressure=pressure)
        self._logits, device = gates.logits, gates.logits.device
        self._of = torch.from_numpy(self._variable).to(device)  # (U,): the variable of each unit
        self._moments = torch.zeros(2, len(self._of), device=device)
        self._pays = torch.zeros(len(widths), device=device)
        self._period = max(1, min(PERIOD, steps // PRICES))
        self._taken = 0

    @property
    def taken(self) -> int:
        """Steps so far."""
        return self._taken

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, apart from the logits."""
        own = {"moments": self._moments.cpu(), "pays": self._pays.cpu(), "steps": self._taken}
        return {**own, "price": self.price.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._moments.copy_(state["moments"])
        self._pays.copy_(state["pays"])
        self._taken = state["steps"]
        self.price.load_state_dict(state["price"])

    def step(self, gradient: Tensor) -> None:  # type: ignore[override]
        """Move the gates, in place; now and then set the price.  ``gradient``: d loss / d log_alpha, (U,)."""
        open_ = torch.sigmoid(self._logits - OPEN_SHIFT)
        if self._taken % self._period == 0:
            units = torch.zeros_like(self._pays).index_add_(0, self._of, open_)
            pays = self.price.step(units.cpu().double().numpy(), self._period)
            self._pays.copy_(torch.from_numpy(pays))
        self._taken += 1
        g = gradient + open_ * (1 - open_) * self._pays[self._of]
        (mean, square), (beta1, beta2) = self._moments, self.BETAS
        mean.lerp_(g, 1 - beta1)
        square.lerp_(g * g, 1 - beta2)
        rate = self.LEARNING_RATE * self.price.scale / (1 - beta1**self._taken)
        root = (square / (1 - beta2**self._taken)).sqrt_().add_(self.EPSILON)
        self._logits.addcdiv_(mean, root, value=-rate)
