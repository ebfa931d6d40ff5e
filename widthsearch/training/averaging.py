"""An exponential moving average of a network's weights, which is what a training with one ends with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from widthsearch.space.copies import named_tensors


class MovingAverage:
    """Of a network's weights and statistics, by torch's own function.

    The first steps count less, so that the random weights of the start are soon forgotten, however short the
    training is.  (No copy of the network, as torch's ``AveragedModel`` makes one: it may carry gates.)
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._net, self._decay, self._steps = net, decay, 0
        # What is not finite, such as a mask of -inf, is no statistic, and its average would be NaN.
        self._names = [
            name
            for name, tensor in named_tensors(net).items()
            if (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isfinite().all())
        ]
        self._averages = [tensor.clone() for tensor in self._now()]

    @torch.no_grad()
    def step(self) -> None:
        """After each step of the optimizer."""
        self._steps += 1
        decay = min(self._decay, self._steps / (10 + self._steps))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(self._averages, self._now(), self._steps)

    @torch.no_grad()
    def settle(self) -> None:
        """At the end: the network takes the averages."""
        for own, average in zip(self._now(), self._averages, strict=True):
            own.copy_(average)

    def _now(self) -> list[Tensor]:
        tensors = named_tensors(self._net)
        return [tensors[name].detach() for name in self._names]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "averages": dict(zip(self._names, self._averages, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._steps = state["steps"]
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state["averages"][name])
