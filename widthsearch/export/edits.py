"""What to type into a network's own code so that it has other widths: module, argument, old, new."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from widthsearch.plans.words import in_code

# What the layers of torch, and classes made from them, register themselves.
_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Edit:
    """One value that differs between two networks of one code.

    ``what``: an ``argument`` of the module's constructor; an ``attribute`` that the user's module sets; a
    ``shape`` of a parameter or buffer that the user's module registers itself.
    """

    module: str  # its name in the network, "" for the network itself
    kind: str  # its class
    what: Literal["argument", "attribute", "shape"]
    name: str
    old: Any
    new: Any

    @property
    def path(self) -> str:
        """``layer1.0.conv1.out_channels``."""
        return f"{self.module}.{self.name}" if self.module else self.name


def edits(old: nn.Module, new: nn.Module) -> list[Edit]:
    """Every size that must be typed to turn the network ``old`` into ``new``, in the order of the modules.

    ``new`` is ``old`` resized: it has the same modules.  What follows by itself is left out: attributes that
    torch's layers work out from their arguments, and the layer that ``nn.MultiheadAttention`` makes inside.
    """
    modules = dict(new.named_modules())
    made = {f"{n}.out_proj" for n, m in old.named_modules() if isinstance(m, nn.MultiheadAttention)}
    rows: list[Edit] = []
    for name, module in old.named_modules():
        if name not in made:
            rows += _sizes(name, module, modules[name])
            rows += _shapes(name, module, modules[name])
    return rows


def _sizes(name: str, old: nn.Module, new: nn.Module) -> Iterator[Edit]:
    arguments = _arguments(type(old))
    for attribute, before in vars(old).items():
        after = vars(new).get(attribute)
        if attribute.startswith("_") or not _is_size(before) or after == before:
            continue
        if attribute in ("kdim", "vdim") and _is_embedded(old, before) and _is_embedded(new, after):
            continue  # the default
        if attribute in arguments:
            yield Edit(name, type(old).__name__, "argument", attribute, before, after)
        elif not _is_torchs(old):
            yield Edit(name, type(old).__name__, "attribute", attribute, before, after)


def _shapes(name: str, old: nn.Module, new: nn.Module) -> Iterator[Edit]:
    if _is_torchs(old):
        return
    layer = any(
        base.__module__.startswith("torch.nn.") and base is not nn.Module for base in type(old).__mro__
    )
    tensors = dict([*new.named_parameters(recurse=False), *new.named_buffers(recurse=False)])
    for own, tensor in [*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)]:
        before, after = tuple(tensor.shape), tuple(tensors[own].shape)
        if before != after and not (layer and own in _OF_LAYERS):
            yield Edit(name, type(old).__name__, "shape", own, before, after)


def _arguments(kind: type) -> set[str]:
    """The names of the constructor's arguments; where it takes ``*args`` (nn.LSTM), of its base's too."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            given = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names |= {p.name for p in given}
            if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given):
                break
    return names


def _is_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(v, int) for v in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_embedded(module: nn.Module, size: Any) -> bool:
    return isinstance(module, nn.MultiheadAttention) and size == module.embed_dim


def markdown(changes: Iterable[Edit]) -> str:
    """The edits as tables, one for each kind of thing to type."""
    titles = {
        "argument": ("Arguments of the modules", "argument"),
        "attribute": ("Attributes that your own modules set", "attribute"),
        "shape": ("Shapes of parameters and buffers that your own modules register", "tensor"),
    }
    rows = list(changes)
    parts = []
    for what, (title, column) in titles.items():
        if chosen := [row for row in rows if row.what == what]:
            lines = [
                f"## {title}",
                "",
                f"| module | class | {column} | old | new |",
                "|---|---|---|---:|---:|",
            ]
            lines += [
                f"| {in_code(r.module) if r.module else '(the network)'} | {r.kind} | {in_code(r.name)} "
                f"| {_shown(r.old)} | {_shown(r.new)} |"
                for r in chosen
            ]
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    return (
        f"{value:.6g}"
        if isinstance(value, float)
        else str(tuple(value) if isinstance(value, list) else value)
    )
