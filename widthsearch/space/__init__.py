"""The width variables of any ``nn.Module``: find them, count their cost, resize and compact the model."""

from widthsearch.space.copies import call
from widthsearch.space.gating import ConsumerAxis, Gating
from widthsearch.space.op import Op
from widthsearch.space.rules import register_rule
from widthsearch.space.variables import Frozen
from widthsearch.space.width_space import WidthSpace, trace

__all__ = ["ConsumerAxis", "Frozen", "Gating", "Op", "WidthSpace", "call", "register_rule", "trace"]
