"""The notebook of a trace: what is known of every tensor, and what one run of a model leaves behind.

Rules of operations (:mod:`.op`) and readers of stated sizes (:mod:`.attributes`) write into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from widthsearch.space.labels import Dim, Dims, Factor, Ids, Labels, constants
from widthsearch.space.masking import LAYERS, PRODUCTS
from widthsearch.space.module_stack import ModuleStack, Site

Axis = tuple[str, int]  # (parameter or buffer, dimension)
Place = tuple[str, tuple[Any, ...]]  # module; attribute, then keys, positions and attributes inside it


@dataclass
class Reading:
    """Who reads units through a weight: the modules whose forward does it, and how much it reads."""

    modules: set[str] = field(default_factory=set)
    elements: int = 0  # of the activations it is multiplied with, for the whole batch
    gated: bool = True  # these activations are scaled by their gates already


class Applied(NamedTuple):
    """A number that a module holds, by whose ``value`` (or what follows from it) a tensor is multiplied."""

    place: Place
    value: float
    by: float


@dataclass
class Trace:
    """What one traced run of a model leaves behind."""

    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Ids] = field(default_factory=dict)  # every parameter and buffer dimension larger than 1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # every parameter and buffer
    parameters: tuple[str, ...] = ()
    read: set[str] = field(default_factory=set)  # those of them that an operation reads
    ran: set[str] = field(default_factory=set)  # modules whose forward was called
    productions: list[tuple[str, Ids]] = field(default_factory=list)  # a layer, and units that it makes
    consumers: dict[Axis, Reading] = field(default_factory=dict)  # in order of execution
    macs: list[Dim] = field(default_factory=list)  # each a product of sizes, for the whole batch
    written: list[Dim] = field(
        default_factory=list
    )  # likewise, per tensor that an operation writes: elements
    sites: dict[Site, dict[int, Ids]] = field(default_factory=dict)  # statistics over units, per dimension
    by_groups: dict[str, bool] = field(default_factory=dict)  # whether a module's groups are units, see rules
    normalised: dict[str, Ids] = field(default_factory=dict)  # per BatchNorm-like module, its channels
    # What scales products: as which power of how many units are summed over.
    scales: dict[Place, tuple[Ids, float]] = field(default_factory=dict)
    scaled: dict[Site, Place] = field(default_factory=dict)  # the products that one of them scales
    held: dict[Place, float] = field(default_factory=dict)  # every number that a module holds
    tensors: set[Place] = field(default_factory=set)  # those of them in a tensor of one value
    converted: set[Place] = field(default_factory=set)  # those of them that were read as a float
    elsewhere: set[Place] = field(default_factory=set)  # others that something reads that does not multiply
    applied: list[tuple[Applied, list[Dim]]] = field(default_factory=list)  # with what each has units of
    heads: dict[str, Ids] = field(default_factory=dict)  # per module, the heads of its attention
    sizes: dict[Place, int] = field(default_factory=dict)  # every whole number that a module holds
    stated: dict[Place, tuple[Dim, Fraction]] = field(default_factory=dict)  # those that are a dim's / ratio
    output_shapes: dict[bool, list[tuple[int, ...]]] = field(default_factory=dict)  # in train mode or not
    kept: dict[str, str] = field(default_factory=dict)  # parameters that keep their shape, and why
    routed: bool = False  # which of its layers run, or on what, depends on the values of its weights
    device: str = "meta"
    keep_heads: bool = False  # the size of heads is searched, not their number
    counts: str | int | None = None  # the one output that counts, by its key or position; None: all


@dataclass(eq=False)
class Label:
    """What is known of one tensor.

    ``source``: the parameter that it is a linear image of (a view, a multiple), None for other tensors.
    ``live``: it depends on the input of the network.  ``gated``: a normalisation that scales its output by
    the gates has made it.  ``over``: what it is a sum over, and the product of activations that made it, if
    one did; ``factors``: what scales it.
    """

    dims: Dims
    source: str | None = None
    live: bool = False
    gated: bool = False
    over: tuple[tuple[Ids, Site | None], ...] = ()
    factors: frozenset[Applied] = frozenset()


class Recorder:
    """Writes a :class:`Trace` while the model runs, and holds the :class:`Label` of every tensor."""

    def __init__(self, trace: Trace, modules: ModuleStack) -> None:
        self.trace = trace
        self.modules = modules
        self.labels = trace.labels
        self.counts_macs = True
        self.site: Site | None = None  # the call of a function with a masked form that is running, if any
        self.if_used: Any = WeakTensorKeyDictionary()  # tensor -> what to freeze once it is read
        self.numbers: Any = WeakTensorKeyDictionary()  # tensor of one value -> the attribute that it is
        self._labels: Any = WeakTensorKeyDictionary()
        self._axis_of = {id(ids): axis for axis, ids in trace.axes.items()}

    def label(self, tensor: Tensor) -> Label:
        """The label of a tensor; one never seen before (a plain attribute, say) is constant."""
        known: Label | None = self._labels.get(tensor)
        return known if known is not None else Label(constants(tensor.shape))

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""
        self._labels[tensor] = label

    def axes_of(self, dim: Sequence[Factor]) -> list[Axis]:
        """The parameter axes that this dimension is made of, each whole and in order; empty if it is not."""
        axes = [axis for factor in dim if (axis := self._axis_of.get(id(factor))) is not None]
        return axes if len(axes) == len(dim) else []

    def produce(self, parameter: str, units: Ids) -> None:
        """Note that the layer owning this weight has just made units."""
        self.trace.productions.append((layer_of(parameter), units))

    def note_consumer(self, axis: Axis, activations: Tensor) -> None:
        """Note that the module at work multiplies activations with this weight and sums over this axis."""
        reading = self.trace.consumers.setdefault(axis, Reading())
        reading.modules.add(self.modules.innermost)
        reading.gated &= self.label(activations).gated
        if self.counts_macs:  # in one of the two modes
            reading.elements += activations.numel()

    def note_product(self, site: Site, units: Ids, *factors: Tensor) -> None:
        """A product of activations is summed over units; its masked form gates one dimension."""
        self.trace.sites.setdefault(site, {PRODUCTS[site.function]: units})
        if site.function not in LAYERS:
            for applied in {a for tensor in factors for a in self.label(tensor).factors}:
                self.note_scale(applied, units, site)

    def note_scale(self, applied: Applied, units: Ids, site: Site | None = None) -> None:
        """A number scales a product over these units; one that does it for their number follows them."""
        if applied.place in self.trace.tensors:
            return
        power = _power(applied, len(units), whole=applied.place in self.trace.sizes)
        if power is not None:
            self.trace.scales.setdefault(applied.place, (units, power))
            if site is not None:
                self.trace.scaled[site] = applied.place

    def note_normalised(self, channels: Factor) -> None:
        """The module at work may state this size without having a tensor of it."""
        if not isinstance(channels, int):
            self.trace.normalised[self.modules.innermost] = channels

    def use(self, tensor: Tensor) -> None:
        """Something reads this tensor."""
        self.labels.freezes.extend(self.if_used.pop(tensor, ()))
        if (source := self.label(tensor).source) is not None:
            self.trace.read.add(source)


def layer_of(parameter: str) -> str:
    """The layer whose weight this is, or is computed from it (weight_norm, pruning); else the parameter."""
    owner, _, leaf = parameter.rpartition(".")
    if leaf.startswith("original"):
        owner, _, leaf = owner.replace("parametrizations.", "").rpartition(".")
    elif leaf in ("weight_v", "weight_g", "weight_orig"):
        leaf = "weight"
    return owner if owner and leaf == "weight" else parameter


def _power(applied: Applied, size: int, *, whole: bool) -> float | None:
    """As which power of this size a number scales dot products, to a variance that is the same at all sizes.

    ``whole``: it is held as a whole number, the size itself.
    """
    if not whole and math.isclose(applied.value, size**-0.5):
        return -0.5
    power = 1.0 if whole else 0.5
    scales = math.isclose(applied.value, size**power) and math.isclose(applied.by, size**-0.5)
    return power if scales else None
