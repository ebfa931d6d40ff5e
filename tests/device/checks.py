"""What can only be seen on a GPU: exactness, gates, packs, full memory, trainings that share a GPU.

    tests/device/run [FILE]

Each check is a function that returns what it found; one that fails says why, and the others go on.  On a machine
without a GPU they run too, and show that they can: their figures are then those of a CPU.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from widthsearch import Budget, Recipe, Study
from widthsearch.driver.prepare import make_plan
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.space import WidthSpace
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.controller import BudgetController
from widthsearch.training.device_gates import DeviceController, DeviceGates
from widthsearch.training.gates import Gates
from widthsearch.training.pack import why_alone
from widthsearch.training.recipe_loop import RecipeLoop, make_optimizer
from widthsearch.training.trial import TrialRunner, build_space

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PAIRS, STEPS = (40, 25) if GPU else (4, 2)  # of a ratio: pairs of blocks, steps of a block
PRECISIONS: tuple[Any, ...] = ("bfloat16", "tf32", "float32")


def network() -> nn.Module:
    """Seven widths: convolutions with BatchNorm, as small as those of the studies."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 24), (24, 48), (48, 48), (48, 96), (96, 96)):
        stride = 2 if after > before and before > 3 else 1
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def transformer() -> nn.Module:
    """With LayerNorm, whose statistics are taken over open units."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Linear(48, 64), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(64 * 16, 10)
    )


def images() -> Any:
    """Ten patterns in noise: something to learn, made here."""
    generator = torch.Generator().manual_seed(0)
    n = 4096 if GPU else 256
    patterns = torch.randn(10, 3, 16, 16, generator=generator)
    y = torch.arange(n) % 10
    x = patterns[y] + 2 * torch.randn(n, 3, 16, 16, generator=generator)
    half = n // 2
    return (x[:half], y[:half]), (x[half:], y[half:])


def rows() -> Any:
    """The same as 16 rows of 48 numbers."""
    return tuple((x.reshape(-1, 16, 48), y) for x, y in images())


RECIPE = Recipe(epochs=6 if GPU else 2, batch_size=128, lr=0.05)
STUDY = Study(
    model=network, data=images, budget=Budget(macs="0.25x"), recipe=RECIPE, replicas=2, measure_length=1
)


def prepared(study: Study = STUDY) -> tuple[WidthSpace, Plan]:
    space = build_space(study, study.data())
    return space, make_plan(study, space)


def runner(study: Study, folder: str | None = None) -> TrialRunner:
    plan = SearchPlan(replace(prepared(study)[1], pack=True))
    return TrialRunner(study, plan, None if folder is None else (folder, "this"))


def slots(kind: Any, study: Study, many: int) -> list[Slot]:
    plan = prepared(study)[1]
    return [
        Slot(kind, 0, k, plan.over_wide_seed if kind == "measure" else plan.baseline) for k in range(many)
    ]


def seconds(action: Callable[[], object]) -> float:
    if GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratio(of: Callable[[], object], to: Callable[[], object]) -> dict[str, float]:
    """Time of blocks of steps, one over the other, in alternating pairs of one run."""
    for step in (of, to):
        for _ in range(STEPS):
            step()
    found = [
        seconds(lambda: [of() for _ in range(STEPS)]) / seconds(lambda: [to() for _ in range(STEPS)])
        for _ in range(PAIRS)
    ]
    q1, median, q3 = statistics.quantiles(found, n=4)
    return {"median": round(median, 3), "q1": round(q1, 3), "q3": round(q3, 3), "n": PAIRS}


# Training steps -------------------------------------------------------------------------------------------------


def stepper(study: Study, gates: str = "none") -> Callable[[], object]:
    """A training step of the seed network: without gates, with those of the CPU, or with those of the device."""
    space, plan = prepared(study)
    loop = RecipeLoop(study.recipe, study.data())
    space = space.at(space.widths)
    net = space.model.to(DEVICE).train()
    aim: dict[str, Any] = {
        "cost": plan.cost,
        "budget": plan.budget,
        "steps": 10_000,
        "pressure": plan.pressure,
    }
    if gates == "device":
        own = DeviceGates(space)
        own.attached(DeviceController(own, space.widths, **aim).step).__enter__()
    elif gates == "cpu":
        of_cpu = Gates(space)
        of_cpu.attached(BudgetController(of_cpu.log_alpha, space.widths, **aim).step).__enter__()
    optimizer = make_optimizer(list(net.parameters()), study.recipe)
    x, y = (t[:128].to(DEVICE) for t in loop.splits["train"])  # type: ignore[misc]

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            loss = nn.functional.cross_entropy(net(x), y)
        net.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def waits(step: Callable[[], object], many: int = 50) -> float:
    """How often a step waits for the GPU, by torch's own warning."""
    for _ in range(3):
        step()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(many):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in found) / many


def gates_in_a_step() -> dict[str, Any]:
    """Gated over plain, with the gates on the device and (as an own loop has them) on the CPU."""
    found: dict[str, Any] = {}
    for name, study in (
        ("convolutions", STUDY),
        ("transformer", replace(STUDY, model=transformer, data=rows)),
    ):
        steps = {gates: stepper(study, gates) for gates in ("none", "device", "cpu")}
        found[name] = {
            "on the device": ratio(steps["device"], steps["none"]),
            "on the CPU": ratio(steps["cpu"], steps["none"]),
            "plain, as a control": ratio(stepper(study), steps["none"]),
        }
        if GPU:
            found[name]["waits per step"] = {gates: waits(step) for gates, step in steps.items()}
    return found


def a_measure_ends_at_its_budget() -> dict[str, Any]:
    """The expected cost before the cut, relative to the budget, and what the cut network is good for."""
    study = replace(STUDY, recipe=replace(RECIPE, epochs=40 if GPU else 4))
    space, plan = prepared(study)
    own = runner(study)
    (slot,) = slots("measure", study, 1)
    outcome = own.run(slot)
    assert plan.cost.at(outcome["kept"])["macs"] <= plan.budget["macs"]
    return {"kept": outcome["kept"], "accuracy": outcome["accuracy"]}


# Exactness -------------------------------------------------------------------------------------------------------


def exactness() -> dict[str, Any]:
    """Seconds of a training by precision, and with deterministic kernels; what repeats to the last bit."""
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        for deterministic in (False, True):
            recipe = replace(RECIPE, precision=precision, deterministic=deterministic)
            study = replace(STUDY, recipe=recipe)
            own, (slot,) = runner(study), slots("score", study, 1)
            own.run(slot)
            losses: list[float] = []
            took = [
                seconds(lambda own=own, slot=slot, to=losses: to.append(own.run(slot)["val_loss"]))
                for _ in "123"
            ]
            found[f"{precision}{', deterministic' * deterministic}"] = {
                "seconds": round(statistics.median(took), 3),
                "repeats": len(set(losses)) == 1,
                "loss": losses[0],
            }
    assert all(case["repeats"] for name, case in found.items() if "deterministic" in name)
    torch.use_deterministic_algorithms(False)
    return found


class Stopped(BaseException):
    """Where a worker would have been killed."""


def a_stopped_training_goes_on() -> dict[str, Any]:
    """From its checkpoint, plain and gated, to the last bit with deterministic kernels."""
    study, real, found = replace(STUDY, recipe=replace(RECIPE, deterministic=True)), Checkpoint.save, {}

    def save(self: Checkpoint, epochs: int, parts: Any) -> None:
        real(self, epochs, parts)
        raise Stopped

    for kind in ("score", "measure"):
        (slot,) = slots(kind, study, 1)
        with tempfile.TemporaryDirectory() as folder:
            whole = runner(study).run(slot)
            Checkpoint.save = save  # type: ignore[method-assign]
            try:
                stopped = runner(study, folder).run_all([slot])[0]["error"]
            finally:
                Checkpoint.save = real  # type: ignore[method-assign]
            assert "Stopped" in stopped
            again = runner(study, folder).run(slot)
        found[kind] = again["val_loss"] == whole["val_loss"]
    torch.use_deterministic_algorithms(False)
    assert all(found.values()), found
    return found


# Packs -----------------------------------------------------------------------------------------------------------


def packs() -> dict[str, Any]:
    """Seconds of trainings one by one over those of one pack, and how their losses differ."""
    assert why_alone(prepared()[0], RECIPE, images()[0]) is None
    own, found = runner(STUDY), {}
    for kind, many in (
        ("score", 2),
        ("score", 4),
        ("score", 8),
        ("score", 16),
        ("measure", 2),
        ("measure", 4),
    ):
        of = slots(kind, STUDY, many)
        own.run_all(of)
        results: dict[str, Any] = {}
        together = seconds(lambda of=of, to=results: to.update(pack=own.run_all(of)))
        alone = seconds(lambda of=of, to=results: to.update(alone=[own.run(slot) for slot in of]))
        losses = [[o["val_loss"] for o in results[name]] for name in ("pack", "alone")]
        found[f"{many} {kind}s"] = {
            "one by one over together": round(alone / together, 2),
            "mean loss together": statistics.mean(losses[0]),
            "mean loss one by one": statistics.mean(losses[1]),
        }
    return found


# Memory, and several on one GPU --------------------------------------------------------------------------------


def full_memory_says_what_to_lower() -> str:
    """A batch that no GPU holds."""
    if not GPU:
        return "no GPU"
    wide = replace(STUDY, model=lambda: nn.Sequential(nn.Conv2d(3, 2**15, 3, padding=1), nn.ReLU(), nn.Conv2d(2**15, 8, 3), nn.Flatten(), nn.Linear(8 * 196, 10)), recipe=replace(RECIPE, batch_size=2048))  # fmt: skip
    own, (slot,) = runner(wide), slots("score", wide, 1)
    error: str = own.run_all([slot])[0]["error"]
    assert "lower Recipe(batch_size=...)" in error, error
    torch.cuda.empty_cache()
    return error


FILE = """
from checks import STUDY
from dataclasses import replace

study = replace(STUDY, gpus={gpus}, cpus=1, rounds=1, seeds=2, final_seeds=0, report_seeds=2, step_sizes=(0.3,),
                doublings=0, pack={pack!r})
"""


def a_search(workers: int, pack: str) -> dict[str, Any]:
    import widthsearch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "small.py")
        file.write_text(FILE.format(gpus=0.25 if GPU else 0, pack=pack))
        url = f"sqlite:///{folder}/small.db"
        took = seconds(lambda: widthsearch.launch(str(file), storage=url, workers=workers))
        result = widthsearch.load("small", url)
        assert result.status == "finished"
        return {"seconds": round(took, 1), "widths": result.widths, "gain": result.gain}


def searches() -> dict[str, Any]:
    """A whole small search: in this process, with packs, and with four trainings on one GPU through Ray."""
    found = {"one by one": a_search(0, "never"), "packed": a_search(0, "always")}
    # (Not imported here: Ray reads its environment when it is, and a launch sets that first.)
    there = find_spec("ray") is not None
    found["through Ray"] = a_search(4 if GPU else 1, "never") if there else {"left out": "no ray here"}
    return found


CHECKS = (
    exactness,
    a_stopped_training_goes_on,
    gates_in_a_step,
    a_measure_ends_at_its_budget,
    packs,
    full_memory_says_what_to_lower,
    searches,
)


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    machine = torch.cuda.get_device_name() if GPU else f"{platform.machine()} CPU"
    found: dict[str, Any] = {"device": machine, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    failed = 0
    for check in CHECKS:
        began = time.perf_counter()
        try:
            outcome: Any = check()
        except Exception as error:
            failed, outcome = failed + 1, {"failed": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        found[check.__name__] = outcome
        print(f"{check.__name__}: {time.perf_counter() - began:.1f} s\n  {json.dumps(outcome)}", flush=True)
        Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
