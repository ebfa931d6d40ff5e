"""Element-wise operations and filled tensors."""

from __future__ import annotations

from widthsearch.space.labels import constant, constants
from widthsearch.space.op import Op, Result

# A filled tensor has the same value everywhere, so that it can follow a variable; a huge one never does.
LARGEST_FILLED = 1 << 16


def pointwise(op: Op) -> Result:
    """Element-wise with broadcasting: equal indices are the same unit."""
    shape = op.outputs[0].shape
    dims = op.broadcast(op.inputs, shape)
    return [dims if out.shape == shape else constants(out.shape) for out in op.outputs]


def same(op: Op) -> Result:
    """Values may change, every index stays where it is."""
    return [op.dims(op.inputs[0])] * len(op.outputs)


def filled(op: Op) -> Result:
    """A tensor of one value (zeros, ones): it may follow whatever it is used with; verification tells."""
    return [
        tuple((op.labels.new(s),) if 1 < s <= LARGEST_FILLED else constant(s) for s in op.outputs[0].shape)
    ]


def constant_result(op: Op) -> Result:
    """Values that differ by index (arange, random numbers): constant sizes."""
    return [constants(t.shape) for t in op.outputs]
