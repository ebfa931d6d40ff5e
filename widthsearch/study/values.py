"""Settings and data as text that is the same in every process: what resume compares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


def said(value: Any, within: tuple[int, ...] = ()) -> str:
    """A setting as text: no address is in it, but all that an object holds.

    Functions and classes are said by name, as their code is compared; tensors and arrays by a digest.
    ``within``: the objects that this one is a part of.
    """
    if id(value) in within:
        return "..."

    def inner(part: Any) -> str:
        return said(part, (*within, id(value)))

    if isinstance(value, partial):
        return f"partial({', '.join(map(inner, (value.func, value.args, value.keywords)))})"
    if hasattr(value, "__qualname__"):
        owner = getattr(value, "__self__", None)  # of a bound method
        bound = owner is not None and not isinstance(owner, type)
        return str(value.__qualname__) + (f" of {inner(owner)}" if bound else "")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(k)}: {inner(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(inner, value))}{',' * (len(value) == 1)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {digest([value])}"
    if hasattr(value, "__dict__"):
        return f"{type(value).__qualname__}({inner(vars(value))})"
    text = repr(value)
    return f"{type(value).__qualname__}()" if " at 0x" in text else text


def digest(parts: Iterable[Any]) -> str:
    """Of the whole content of tensors, arrays and images; of anything else its text."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            whole = part.detach().cpu().contiguous()
            total.update(f"{tuple(whole.shape)} {whole.dtype}".encode())
            total.update(whole.reshape(-1).view(torch.uint8).numpy().data)
        elif hasattr(part, "__array_interface__"):
            array = np.ascontiguousarray(part)
            total.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
        else:
            total.update(said(part).encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:12]
