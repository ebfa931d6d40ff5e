"""The width variables of any ``nn.Module``: find them, count their cost, resize and compact the model."""

from widthsearch.space.variables import Frozen
from widthsearch.space.width_space import ConsumerAxis, WidthSpace, trace

__all__ = ["ConsumerAxis", "Frozen", "WidthSpace", "trace"]
