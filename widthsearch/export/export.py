"""What a search recommends, as files: widths, trained weights, ONNX, and what to type into one's own code."""

from __future__ import annotations

import json
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from shutil import rmtree
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.text import Text
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from widthsearch.database import records
from widthsearch.database.connection import Database, url_from
from widthsearch.database.folder import Folder
from widthsearch.driver.create import checkpoint_folder
from widthsearch.driver.resume import load_again
from widthsearch.errors import TrainingError, UsageError, describe_error
from widthsearch.export.edits import edits, markdown
from widthsearch.export.onnx_file import NotExportedError, write_onnx
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.plans.words import in_code, joined
from widthsearch.report.search import summarise
from widthsearch.report.summary import finite
from widthsearch.show.formats import plus_minus
from widthsearch.show.markup import markdown_of
from widthsearch.study.file import StudyFile
from widthsearch.study.study import Study
from widthsearch.training.trial import TrialRunner

JSON, TABLE, EXAMPLE, README = "widths.json", "widths.md", "example.pt", "README.txt"
WEIGHTS, ONNX = "model.pt", "model.onnx"
FILES = (JSON, TABLE, EXAMPLE, WEIGHTS, ONNX, f"{ONNX}.data", README)


@dataclass(frozen=True)
class Exported:
    """The folder that was written, its files, and one line about each that says what is in it, or why not."""

    folder: Path
    files: tuple[str, ...]
    about: dict[str, str]


def export(
    name: str | None,
    storage: str | None,
    folder: str | Path,
    *,
    file: str | None = None,
    checkpoints: str | None = None,
    weights: bool = True,
    force: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write what a search recommends into a new folder, whole or not at all.

    The weights are those of the best of the recommendation's trainings.  No search keeps them: the training
    is made once more from its seed, here, and its validation loss compared with the one in the database.

    ``name``: of the study, default the latest; ``storage``: its database, default as for the commands;
    ``file`` and ``checkpoints``: where its file and its checkpoints are now, if they were moved;
    ``weights``: without them nothing is trained, and there is no ONNX file; ``force``: replace an earlier
    export, and go on if the study file has changed; ``say`` is told what happens.

    Raises :class:`UsageError` for a study that recommends nothing (yet), for a comparison, for a study file
    that has changed or is gone, and for a folder that cannot be written or holds something already.
    """
    database = Database.open(url_from(storage))
    study = records.load(name, database)
    plan, summary = _recommendation(study, database)
    target = _target(folder, force)
    found = load_again(study, file, force=force)
    where, identity = study.user_attrs[records.CHECKPOINTS], study.user_attrs[records.IDENTITY]
    if checkpoints is not None:
        where = checkpoint_folder(database.url, checkpoints, study.study_name, identity)
    elif weights:
        where = Folder.of_study(where, study.study_name, identity).url
    if weights and found.study.processes > 1:
        raise UsageError(
            f"a training of this study takes {found.study.processes} processes, and an export has one: give "
            "--no-weights, and train the recommended network by your own loop"
        )
    with _aside(target) as made, _threads_kept():
        runner = TrialRunner(found.study, SearchPlan(plan), (where, identity) if weights else None)
        if set(runner.space.widths) != set(plan.widths):
            raise UsageError(f"{found.path}: the network has other width variables now than in the search")
        network = Network(summary, found, runner)
        about = _write_widths(network, made)
        if weights:
            best = _best_training(study, plan, summary)
            slot = _slot(best, plan)
            about |= _write_weights(network, slot, best, made, say)
            # Nothing of the training stays; the folder of a search that may go on does.
            kept = Folder(where)
            if summary["status"] == "finished":
                kept.clear()
            else:
                kept.remove(slot.file)
        (made / README).write_text(_readme(network, about))
        _move(made, target)
    return Exported(target, tuple(n for n in FILES if (target / n).exists()), about)


@dataclass(frozen=True)
class Network:
    """What is exported: the study's ``summary``, the study and its file, and who trains it."""

    summary: dict[str, Any]
    file: StudyFile
    runner: TrialRunner

    @property
    def widths(self) -> dict[str, int]:
        """The recommended ones."""
        widths: dict[str, int] = self.summary["recommended"]["widths"]
        return widths

    @property
    def example(self) -> Any:
        """What it was traced with, on the CPU (and without the rest of the data that it may be a view of)."""
        example = self.runner.space.example
        return tree_map(lambda t: t.detach().cpu().clone() if isinstance(t, Tensor) else t, example)


def _recommendation(study: optuna.Study, database: Database) -> tuple[Plan, dict[str, Any]]:
    plan, name = records.plan_of(study), study.study_name
    if plan.kind != "search":
        raise UsageError(f"{name!r} is a comparison or probe, which recommends no widths; export a search")
    summary = summarise(study, database.url)
    if summary["recommended"] is None:
        hint = f"go on with: {database.command('resume', name)}"
        if summary["status"] == "running":
            hint = f"see how far it is with: {database.command('show', name)}"
        raise UsageError(f"study {name!r} ({summary['status']}) has no recommendation yet; {hint}")
    return plan.plan, dict(summary)


# The folder ----------------------------------------------------------------------------------------------


def _target(folder: str | Path, force: bool) -> Path:
    try:
        target = Path(folder).expanduser().resolve()
        if target.exists() and not target.is_dir():
            raise UsageError(f"{str(folder)!r} is a file; give a folder")
        filled = target.exists() and any(target.iterdir())
    except (OSError, ValueError, RuntimeError) as error:  # too long, no text, the home of nobody
        raise UsageError(f"folder {str(folder)!r:.200} cannot be used: {describe_error(error)}") from None
    if filled and not force:
        raise UsageError(
            f"folder {str(folder)!r} is not empty; give a new one, or replace an earlier export with --force"
        )
    return target


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A new folder beside the target, gone at the end; what cannot be written is the user's to mend."""
    made = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        made.mkdir(parents=True)
        yield made
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {describe_error(error)}") from error
    finally:
        rmtree(made, ignore_errors=True)


def _move(made: Path, target: Path) -> None:
    """Into its place in one step; into a folder that exists file by file, beside what else is in it."""
    if not target.exists():
        made.rename(target)
        return
    for name in FILES:  # of an earlier export
        if not (made / name).exists():
            (target / name).unlink(missing_ok=True)
    for file in made.iterdir():
        file.replace(target / file.name)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Torch's thread count, which a study sets, stays what it is outside."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What is in it -------------------------------------------------------------------------------------------


def _write_widths(network: Network, folder: Path) -> dict[str, str]:
    """``widths.json``, ``widths.md`` and ``example.pt``."""
    s, new = network.summary, network.summary["recommended"]
    keys = ("round", "widths", "macs", "params", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
    content = {
        "study": s["study"],
        "file": network.file.reference,
        **{
            key: s[key]
            for key in ("status", "stopped_because", "decision", "verdict", "gain", "budget", "seed")
        },
        **{key: new[key] for key in keys},
        "keep_heads": network.file.study.keep_heads,
    }
    (folder / JSON).write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
    rows = edits(network.runner.space.model, network.runner.space.resize(network.widths))
    (folder / TABLE).write_text(_table(network) + "\n" + markdown(rows))
    # The samples themselves: what the trace makes of a network may depend on the values that it is tried on.
    torch.save(network.example, folder / EXAMPLE)
    return {
        JSON: "widths, costs, verdict",
        TABLE: f"the {len(rows)} values to type into your own code: module, argument, old, new",
        EXAMPLE: "the input that the network was traced with",
    }


def _table(network: Network) -> str:
    s, modules = network.summary, network.runner.space.modules
    lines = [
        f"# {markdown_of([Text(s['study'])])}: from the seed network to the recommended widths",
        "",
        _costs(s),
        "",
    ]
    lines += [f"What the lower tables say, typed into the network's own code, makes it fit `{WEIGHTS}`.", ""]
    lines += ["| width variable | old | new | layers that make its units |", "|---|---:|---:|---|"]
    for variable, width in network.widths.items():
        made_by = ", ".join(map(in_code, modules[variable]))
        lines.append(f"| {in_code(variable)} | {s['seed']['widths'][variable]} | {width} | {made_by} |")
    return "\n".join(lines) + "\n"


def _costs(summary: dict[str, Any]) -> str:
    """Of the seed network, and of the recommended one."""
    resources = (("macs", "MACs"), ("params", "parameters"))
    old, new = summary["seed"], summary["recommended"]
    return ", ".join(f"{old[key]:,} -> {new[key]:,} {label}" for key, label in resources)


def _best_training(study: optuna.Study, plan: Plan, summary: dict[str, Any]) -> FrozenTrial:
    """The recommendation's plain training of the lowest loss; of those on fresh seeds, if there are any."""
    widths = summary["recommended"]["widths"]
    own = [
        t
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if t.user_attrs.get(records.KIND, "measure") != "measure"
        and {v: t.params.get(v) for v in plan.widths} == widths
    ]
    fresh = [t for t in own if t.user_attrs[records.REPLICA] not in plan.selecting]
    return min(fresh or own, key=lambda t: t.value)  # type: ignore[arg-type, return-value]


def _slot(trial: FrozenTrial, plan: Plan) -> Slot:
    a = trial.user_attrs
    widths = {v: trial.params[v] for v in plan.widths}
    return Slot(a[records.KIND], a[records.ROUND], a[records.REPLICA], widths, a.get(records.STEP, 0.0))


def _train_again(
    network: Network, slot: Slot, trial: FrozenTrial, say: Callable[[str], object]
) -> tuple[nn.Module, dict[str, Any], str]:
    """The network of a trial, what its training gave this time, and how that compares."""
    took = f"{trial.user_attrs[records.SECONDS]:.1f} s"
    say(f"training the network of trial {trial.number}, the best of its widths, again (it took {took})")
    trained: list[nn.Module] = []
    try:
        outcome = network.runner.run(slot, trained.append)
    except TrainingError as error:
        raise UsageError(
            f"training it again failed: {error}; --no-weights exports the widths alone"
        ) from error
    for warning in outcome.get("warnings", ()):
        say(warning)
    reached, recorded = outcome["val_loss"], trial.value
    line = f"validation loss {reached:.6g}, equal to that of trial {trial.number} to the last bit"
    if reached != recorded:
        why = "its own training loop, " if network.file.study.train is not None else ""
        line = (
            f"validation loss {reached:.6g}; trial {trial.number} reached {recorded:.6g} "
            f"({why}another machine, device or version can do that, or a file that has changed)"
        )
    return trained[0].cpu().eval(), outcome, line


def _write_weights(
    network: Network, slot: Slot, trial: FrozenTrial, folder: Path, say: Callable[[str], object]
) -> dict[str, str]:
    """``model.pt`` and ``model.onnx``."""
    net, outcome, line = _train_again(network, slot, trial, say)
    content = {
        "state_dict": net.state_dict(),
        "widths": network.widths,
        "val_loss": outcome["val_loss"],
        "trial_val_loss": trial.value,
        "seed": slot.random_seed(network.file.study.seed),
        **{key: outcome.get(key) for key in (records.ACCURACY, records.TEST_LOSS, records.TEST_ACCURACY)},
        "recipe": _recipe(network.file.study),
        "torch": str(torch.__version__),
    }
    torch.save(content, folder / WEIGHTS)
    about = {WEIGHTS: f"weights of the best trained network: {line}"}
    say("writing it as ONNX")
    try:
        checked = write_onnx(net, network.example, folder / ONNX)
    except NotExportedError as error:
        for name in (ONNX, f"{ONNX}.data"):
            (folder / name).unlink(missing_ok=True)
        return {**about, ONNX: f"left out: {error}"}
    batch = "any batch size" if checked.any_batch else "only batches of the example's size"
    return {
        **about,
        ONNX: f"the same network; {batch}; onnxruntime and torch differ by {checked.difference:.1e} at most",
    }


def _recipe(study: Study) -> dict[str, Any]:
    """Its settings as plain values; functions by name."""
    owner: Any = study.recipe if study.train is None else study
    chosen = [f.name for f in fields(owner)] if study.train is None else ["train", "evaluate", "steps"]
    values = {name: getattr(owner, name) for name in chosen}
    return {k: v if v is None or isinstance(v, (int, float, str)) else _name_of(v) for k, v in values.items()}


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", repr(function)))


def _readme(network: Network, about: Mapping[str, str]) -> str:
    s, new = network.summary, network.summary["recommended"]
    lines = [f"What widthsearch recommends in study {s['study']!r}, written on {date.today()}", ""]
    because = f": {s['stopped_because']}" if s["stopped_because"] else ""
    lines += [f"study file   {network.file.reference}", f"status       {s['status']}{because}"]
    lines += [f"widths       {joined(network.widths)} ({TABLE} says of what)"]
    lines += [f"cost         {_costs(s)} (seed network -> this one)"]
    if loss := new["val_loss"]:
        lines.append(f"loss         {plus_minus(loss)} in validation, n = {loss['n']} seeds")
    lines.append(f"decision     {s['decision']['sentence']}")
    if new["round"] is None:
        lines.append("note         uniform scaling is what is recommended: these are its widths")
    if s["status"] != "finished":
        lines.append("note         the search has not ended: what it recommends may still change")
    width = max(map(len, about))
    lines += ["", *(f"{name:<{width}}   {what}" for name, what in about.items())]
    lines += [
        "",
        "The network, rebuilt in this folder (any other way to make your own model will do as well):",
    ]
    lines += ["", textwrap.indent(_code(network, about), "    ")]
    return "\n".join(lines) + "\n"


def _code(network: Network, about: Mapping[str, str]) -> str:
    """The three lines that rebuild the network; two without weights."""
    options = ", keep_heads=True" if network.file.study.keep_heads else ""
    lines = [
        "import torch",
        "from widthsearch import resize",
        "from widthsearch.study.file import load_study",
        "",
        f"study = load_study({network.file.reference!r}).study",
        f"model = resize(study.model(), {JSON!r}, torch.load({EXAMPLE!r}){options})",
    ]
    if WEIGHTS in about:
        lines.append(f"model.load_state_dict(torch.load({WEIGHTS!r}, weights_only=True)['state_dict'])")
    return "\n".join(lines)
