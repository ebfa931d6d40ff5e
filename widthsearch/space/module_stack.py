"""Which module's forward is running, which call of which function in it: places that a later run finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn


class Site(NamedTuple):
    """One call of a function in a forward pass: the ``ordinal``-th in the ``call``-th run of ``module``.

    ``training``: in training mode, in which a module may call others.
    """

    module: str
    call: int
    function: str
    ordinal: int
    training: bool


@dataclass
class _Frame:
    name: str
    call: int
    functions: Counter[str] = field(default_factory=Counter)


class ModuleStack:
    """The modules whose forward is running, innermost last; watches ``only`` these modules if given."""

    def __init__(self, model: nn.Module, only: Collection[str] | None = None) -> None:
        self.modules = dict(model.named_modules())
        self._frames: list[_Frame] = []
        self._calls: Counter[str] = Counter()
        self.ran: set[str] = set()
        self._handles = []
        for name, module in self.modules.items():
            if only is None or not name or name in only:
                self._handles.append(module.register_forward_pre_hook(self._enter(name)))
                self._handles.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            if not name:  # a new forward pass
                self._frames.clear()
                self._calls.clear()
            self._calls[name] += 1
            self.ran.add(name)
            self._frames.append(_Frame(name, self._calls[name]))

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._frames:
            self._frames.pop()

    @property
    def innermost(self) -> str:
        """The module at work; empty for the model itself."""
        return self._frames[-1].name if self._frames else ""

    def next_site(self, function: str) -> Site | None:
        """Count one call of a function in the module at work; None outside of any forward."""
        if not self._frames:
            return None
        frame = self._frames[-1]
        frame.functions[function] += 1
        training = self.modules[frame.name].training
        return Site(frame.name, frame.call, function, frame.functions[function], training)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
