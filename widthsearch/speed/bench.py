"""Real speed: how long networks take, measured side by side.

A machine that others use too is not the same from one second to the next.  So networks are timed in short
blocks, one block of each in every pass, in an order that changes: what disturbs them, disturbs all.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from widthsearch.errors import UsageError, describe_error
from widthsearch.report.listings import Timing
from widthsearch.space import call
from widthsearch.space.copies import batch_size, tensors_in
from widthsearch.training.recipe_loop import moved

K = TypeVar("K", bound=Hashable)

BLOCK = 0.001  # seconds that a block of one network lasts: less than what a scheduler gives to one process
PASSES = 200  # blocks of each network
LEAST_PASSES, PATIENCE = 15, 30.0  # slow networks get fewer passes, once so many seconds have gone by


def hardware(device: torch.device) -> str:
    """The name of the chip that a device computes on."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine()
    )


def batch_of(example: Any, size: int, device: torch.device) -> Any:
    """A batch of ``size`` samples: those of the example, again and again.

    The first dimension of its first tensor is the batch; all tensors of this length have it.
    """
    samples = batch_size(example)

    def repeated(t: Any) -> Any:
        own = isinstance(t, Tensor) and t.ndim and len(t) == samples
        return t[torch.arange(size) % samples] if own else t

    return moved(tree_map(repeated, example), device)


def alternating(
    calls: Mapping[K, Callable[[], object]],
    *,
    threads: int,
    passes: int = PASSES,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], object] | None = None,
) -> dict[K, NDArray[np.float64]]:
    """Seconds per call, (passes,) for each of ``calls``: entry i of all was measured in the same pass.

    ``clock`` gives seconds; ``synchronise`` waits for the device, after each call.  Blocks are timed by
    torch's own ``Timer``, which warms up before each.
    """
    from torch.utils.benchmark import Timer  # here: every search would load it

    stmt = "call()" if synchronise is None else "call(); synchronise()"
    timers = {
        key: Timer(stmt, globals={"call": one, "synchronise": synchronise}, timer=clock, num_threads=threads)
        for key, one in calls.items()
    }
    keys, random = list(calls), np.random.default_rng(0)
    numbers = {key: max(1, round(BLOCK / timer.timeit(2).mean)) for key, timer in timers.items()}
    seconds: dict[K, list[float]] = {key: [] for key in keys}
    start = time.monotonic()
    for i in range(passes):
        if i >= LEAST_PASSES and time.monotonic() - start > PATIENCE:
            break
        for k in random.permutation(len(keys)):
            seconds[keys[k]].append(timers[keys[k]].timeit(numbers[keys[k]]).mean)
    return {key: np.array(own) for key, own in seconds.items()}


def time_networks(
    networks: Mapping[K, nn.Module],
    inputs: Any,
    *,
    threads: int,
    passes: int = PASSES,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, NDArray[np.float64]]:
    """Seconds of a forward pass for inference, (passes,) per network, all on the device of ``inputs``.

    Raises :class:`UsageError` if a network does not run on the inputs.
    """
    device = next((t.device for t in tensors_in(inputs)), torch.device("cpu"))
    for net in networks.values():
        net.to(device).eval()
    with torch.inference_mode():
        try:
            call(next(iter(networks.values())), inputs)
        except Exception as error:
            said = f"the model does not run on a batch of {batch_size(inputs)}: {describe_error(error)}"
            raise UsageError(said) from error
        return alternating(
            {key: partial(call, net, inputs) for key, net in networks.items()},
            threads=threads,
            passes=passes,
            clock=clock,
            synchronise=torch.cuda.synchronize if device.type == "cuda" else None,
        )


def compiled(
    networks: Mapping[K, nn.Module], inputs: Any, *, threads: int, say: Callable[[str], None]
) -> tuple[dict[K, nn.Module], str | None]:
    """The networks under ``torch.compile``, compiled for these inputs; or none, and why it does not work."""
    torch.compiler.reset()  # or the third batch size would count as "dynamic"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the kernels are made for them
    made: dict[K, nn.Module] = {}
    try:
        with torch.inference_mode():
            for key, net in networks.items():
                say(f"batch {batch_size(inputs)}: compiling {len(made) + 1} of {len(networks)} networks")
                made[key] = torch.compile(net, dynamic=False)  # type: ignore[assignment]
                call(made[key], inputs)
    except Exception as error:
        return {}, describe_error(error)
    finally:
        torch.set_num_threads(before)
    return made, None


def bench(
    networks: Mapping[str, nn.Module],
    example: Any,
    *,
    batches: Sequence[int],
    device: torch.device,
    threads: int,
    compile: bool = False,
    passes: int = PASSES,
    say: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Latency and throughput of networks at each batch size, eager or compiled, as plain rows.

    A row has ``batch``, ``mode`` (``eager`` or ``compile``), ``network``, ``latency`` (``median`` and
    quartiles ``q1``, ``q3`` over the ``blocks``, and the ``fastest``, in seconds), ``throughput`` (samples
    per second at the median), and ``ratio``: the median over passes of its latency over that of the first
    network, with its quartiles.  ``say`` gets what is being done; where ``torch.compile`` fails, there are no
    rows, and it gets the reason in one line.
    """
    rows: list[Timing] = []
    for batch in batches:
        inputs = batch_of(example, batch, device)
        nets: Mapping[str, nn.Module] = networks
        if compile:
            nets, reason = compiled(networks, inputs, threads=threads, say=say)
            if reason is not None:
                say(f"batch {batch}: torch.compile does not work here: {reason}")
                continue
        say(f"batch {batch}: measuring {len(nets)} networks")
        seconds = time_networks(nets, inputs, threads=threads, passes=passes)
        first = next(iter(networks))
        for name, own in seconds.items():
            q1, median, q3 = np.quantile(own, (0.25, 0.5, 0.75)).tolist()
            r1, ratio, r3 = np.quantile(own / seconds[first], (0.25, 0.5, 0.75)).tolist()
            rows.append(
                {
                    "batch": batch,
                    "mode": "compile" if compile else "eager",
                    "network": name,
                    "latency": {"median": median, "q1": q1, "q3": q3, "fastest": own.min().item()},
                    "throughput": batch / median,
                    "ratio": {"median": ratio, "q1": r1, "q3": r3},
                    "blocks": len(own),
                }
            )
    return rows
