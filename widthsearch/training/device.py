"""Where a recipe's networks are trained, and how exactly a GPU computes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from widthsearch.study.recipe import Recipe


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device; ``auto`` is the GPU where there is one."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(recipe.device)


def set_exactness(recipe: Recipe, device: torch.device) -> None:
    """Let a GPU compute as the recipe says; CPUs compute in float32 and repeat their results anyway.

    These are torch's settings for the whole process: a worker belongs to one study.
    """
    if device.type != "cuda":
        return
    tf32 = recipe.precision != "float32"  # what autocast leaves in float32, too
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # it would choose kernels by a measurement of time
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    torch.use_deterministic_algorithms(recipe.deterministic)


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The types of a training step's forward pass."""
    mixed = device.type == "cuda" and recipe.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)
