"""Gates: which neurons does an over-wide network give up first?

Hard-concrete gates (Louizos, Welling, Kingma: "Learning sparse neural networks through L0
regularization", ICLR 2018, equations 10 to 13), one per unit, on a whole width space:

    u ~ U(0, 1)
    s = sigmoid((log u - log(1 - u) + log_alpha) / TEMPERATURE)
    z = clamp(s * (HIGH - LOW) + LOW, 0, 1)
    P(z > 0) = sigmoid(log_alpha - TEMPERATURE * log(-LOW / HIGH))

Where the gates act is said in :mod:`.space.gating`.  They are hooks on the user's own model: a training
loop runs it as ever, backward passes hand the gates their gradient, and the gates make a step of their own
whenever an optimizer of the model does, however many passes were made for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from widthsearch.errors import TrainingError
from widthsearch.space import Gating, WidthSpace

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
START = 2.0  # log_alpha of a fresh gate: open with probability 0.96
OPEN_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)

Vector = NDArray[np.floating[Any]]


def sample(log_alpha: Vector, noise: Vector) -> tuple[Vector, Vector]:
    """One hard-concrete sample per gate (equations 10 and 11); ``noise``: log u - log(1 - u).

    Returns the gates z and their derivatives dz / d log_alpha.  All shapes are (U,).
    """
    s = 1 / (1 + np.exp((noise + log_alpha) / -TEMPERATURE))
    z = np.minimum(np.maximum(s * (HIGH - LOW) + LOW, 0), 1)
    slope = (z - LOW) * (HIGH - z) / ((HIGH - LOW) * TEMPERATURE)  # s (1 - s) (HIGH - LOW) / TEMPERATURE
    return z, slope * ((z > 0) & (z < 1))


def expected(log_alpha: Vector) -> Vector:
    """The gates used at test time (equation 13).  Shape (U,) in, (U,) out."""
    z: Vector = np.clip((HIGH - LOW) / (1 + np.exp(-log_alpha)) + LOW, 0, 1)
    return z


def open_probability(log_alpha: Vector) -> Vector:
    """P(z > 0) (equation 12).  Shape (U,) in, (U,) out."""
    p: Vector = 1 / (1 + np.exp(OPEN_SHIFT - log_alpha))
    return p


class Gates:
    """One gate on every unit of a width space: ``log_alpha`` (U,), all variables one after the other.

    While :meth:`attached`, every forward pass of the model is gated.  In training mode it draws one sample,
    from a generator of its own that torch's global one seeds; in eval mode the gates are :func:`expected`,
    times ``mask`` (bool, (U,)) once that is set.
    """

    NOISE_BLOCK = 32  # samples drawn at a time: in the middle of a training step NumPy starts cold

    def __init__(self, space: WidthSpace) -> None:
        self.model = space.model
        self.log_alpha: Vector = np.full(sum(space.widths.values()), START, dtype=np.float32)
        self.mask: NDArray[np.bool_] | None = None
        self._space = space
        self._parameter = next(space.model.parameters())
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._noise: list[Vector] = []  # not used yet, the next one last
        self._pending = Pending(self._parameter, None)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the logits, and the random numbers to come."""
        return {
            "log_alpha": torch.from_numpy(self.log_alpha.copy()),
            "generator": self._generator.get_state(),
            "noise": [torch.from_numpy(noise.copy()) for noise in self._noise],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; in place, as the controller holds on to the logits."""
        self.log_alpha[:] = state["log_alpha"].numpy()
        self._generator.set_state(state["generator"])
        self._noise = [noise.numpy() for noise in state["noise"]]

    @contextmanager
    def attached(self, on_gradient: Callable[[Any], None] | None = None) -> Iterator[None]:
        """Gate the model's forward passes, in whatever loop it is trained.

        ``on_gradient`` gets d loss / d log_alpha, shape (U,), once for each step of an optimizer that has
        weights of the model, at its end: the sum over all backward passes since the last one.  A loop
        without torch's optimizers makes one where it has changed the weights by the next forward pass; what
        is left at the end is the last one.
        """
        space = self._space
        gating = Gating(self.model, list(space.widths.values()), space.consumers, space.statistics)

        running = False
        weights = {id(parameter) for parameter in self.model.parameters()}
        pending = self._pending = Pending(self._parameter, on_gradient)

        def step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            held = (p for group in optimizer.param_groups for p in group["params"])
            if any(id(p) in weights for p in held):
                pending.hand_over()

        def before(model: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal running
            if model is not self.model:
                raise TrainingError("a copy of the gated network was run: it would share the gates' weights")
            if pending.is_overdue:
                pending.hand_over()
            gating.put(self.values(model.training, pending), (args, kwargs))
            running = True

        def after(model: nn.Module, args: Any, output: Any) -> None:
            nonlocal running
            running = False
            gating.take_off()

        def check(module: nn.Module, args: Any) -> None:
            if not running:
                raise TrainingError(
                    f"a {type(module).__name__} ran outside of the network's own forward, where its gates "
                    "cannot act: run the whole network, and leave activation checkpointing out"
                )

        handles = [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.model.register_forward_hook(after, always_call=True),
            *(self.model.get_submodule(n).register_forward_pre_hook(check) for n in gating.readers if n),
            register_optimizer_step_post_hook(step),
        ]
        try:
            # A loop that compiles its network gets the eager one for as long as gates come and go in it.
            with torch.compiler.set_stance("force_eager"):
                yield
            self.settle()
        finally:
            for handle in handles:
                handle.remove()
            gating.remove()

    def settle(self) -> None:
        """At the end of a training: make the step that no optimizer's has brought about, if one is left."""
        self._pending.hand_over()

    def values(self, training: bool, pending: Pending) -> Tensor:
        """The gates of one forward pass, shape (U,), each in [0, 1]."""
        device = self._parameter.device
        refuse_what_gates_cannot_do(device)
        if not training:
            closed = 1 if self.mask is None else self.mask
            return torch.from_numpy((expected(self.log_alpha) * closed).astype(np.float32)).to(device)
        values, slope = sample(self.log_alpha, self._next_noise())
        z = torch.from_numpy(values).to(device)
        if pending.to is not None:
            hook = lambda gradient: pending.add(gradient.cpu().numpy() * slope)  # noqa: E731
            z.requires_grad_().register_hook(hook)  # type: ignore[no-untyped-call]
        return z

    def _next_noise(self) -> Vector:
        """log u - log(1 - u) of uniform numbers u, shape (U,)."""
        if not self._noise:
            u = torch.rand(self.NOISE_BLOCK, len(self.log_alpha), generator=self._generator)
            self._noise = list(u.clamp(1e-6, 1 - 1e-6).logit().numpy())
        return self._noise.pop()


class Pending:
    """The gradient of the gates since their last step, summed over backward passes as ``Tensor.grad`` is."""

    def __init__(self, weight: Tensor, to: Callable[[Any], None] | None) -> None:
        self.to = to
        self._weight, self._version = weight, 0
        self._gradient: Vector | Tensor | None = None

    def add(self, gradient: Vector | Tensor) -> None:
        """Of one forward pass."""
        self._gradient = gradient if self._gradient is None else self._gradient + gradient
        self._version = self._weight._version

    @property
    def is_overdue(self) -> bool:
        """Whether the weights have changed since it came, by other means than an optimizer of torch."""
        return self._gradient is not None and self._weight._version != self._version

    def hand_over(self) -> None:
        """Give it away, if there is any."""
        gradient, self._gradient = self._gradient, None
        if gradient is not None and self.to is not None:
            self.to(gradient)


def refuse_what_gates_cannot_do(device: torch.device) -> None:
    """Raise TrainingError where gates would silently be wrong."""
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        raise TrainingError("float16 scales the loss, and with it the gates' gradient: use bfloat16 autocast")
