"""What is needed to make a study again: its command, settings, versions and study file."""

from __future__ import annotations

import ast
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from widthsearch.database import records
from widthsearch.maths.cost import COUNTED, RESOURCES
from widthsearch.plans.comparison import Comparison
from widthsearch.plans.plan import StudyKind
from widthsearch.plans.probe import PLAIN, Probe
from widthsearch.plans.pruners import PrunerPlan
from widthsearch.plans.words import amounts
from widthsearch.study.budget import Budget
from widthsearch.study.fingerprint import changed_fields, code_of


@dataclass(frozen=True)
class Repeat:
    """Command, settings, versions, the study file's text, and a remark on whether that was changed since.

    ``command`` has a line for each command; ``unsaid``: what none of their options can say.
    """

    command: str
    unsaid: Sequence[str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    code: str | None
    remark: str


@dataclass
class _Words:
    """The options of a command, and what none of them can say."""

    options: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)

    def add(self, option: str, value: object) -> None:
        """``--option value``."""
        self.options += [f"--{option.replace('_', '-')}", str(value)]


def repeat_of(study: optuna.Study) -> Repeat:
    """Read it back from the database; the study file where it lay at launch, if it is still there."""
    words = _words_of(study)
    if (family := records.family_in(study.user_attrs)) is not None:
        words.unsaid.append(f"one of the family {family.name!r}, whose page has the command for all of them")
    verb = _COMMANDS[records.plan_of(study).kind].verb
    lines = [_command(study, verb, study.study_name, words), *_more_rounds(study, verb)]
    return _repeat(study, lines, words.unsaid)


def repeat_of_family(family: str, members: Sequence[optuna.Study]) -> Repeat:
    """The same of a family, whose members differ in their budgets alone."""
    words = _words_of(members[0], skip=("budget",))
    budgets = [member.user_attrs[records.CHANGES]["budget"] for member in members]
    shares = [next(str(of[r]) for r in RESOURCES if of[r] is not None) for of in budgets]
    words.add("budgets", ",".join(share.removesuffix("x") for share in shares))
    more = [line for member in members for line in _more_rounds(member, "launch")]
    return _repeat(members[0], [_command(members[0], "launch", family, words), *more], words.unsaid)


def _repeat(study: optuna.Study, lines: Sequence[str], unsaid: Sequence[str]) -> Repeat:
    attrs = study.user_attrs
    fingerprint, path = attrs[records.FINGERPRINT], Path(attrs[records.SOURCE]["file"])
    before = {k: v for k, v in fingerprint.items() if k.startswith("code of ")}
    code, remark = None, f"{path} is gone"
    try:
        code = path.read_text("utf-8")
        changed = changed_fields(before, code_of(path))
        remark = f"changed since launch: {', '.join(changed)}" if changed else "unchanged since launch"
    except (OSError, SyntaxError, ValueError) as error:
        remark = f"{path} cannot be read: {error}"
    return Repeat(
        command="\n".join(lines),
        unsaid=unsaid,
        settings={k: v for k, v in fingerprint.items() if k not in before},
        versions=attrs.get(records.VERSIONS, {}),
        code=code,
        remark=remark,
    )


def _command(study: optuna.Study, verb: str, name: str, words: _Words) -> str:
    source = study.user_attrs[records.SOURCE]
    file = f"{source['file']}:{source['name']}"
    return shlex.join(["widthsearch", verb, file, "--name", name, *words.options])


def _more_rounds(study: optuna.Study, verb: str) -> list[str]:
    """The command that gave a study more rounds, if there was one: a probe may begin with them."""
    plan = records.plan_of(study).plan
    begun_with = verb == "probe" and plan.rounds == max(plan.at_least, _setting(study, "rounds") or 0)
    if not plan.at_least or begun_with:
        return []
    return [shlex.join(["widthsearch", "resume", study.study_name, "--rounds", str(plan.at_least)])]


def _setting(study: optuna.Study, name: str) -> Any:
    """A plain setting of the study as it was launched; ``None`` where it is not written down."""
    return ast.literal_eval(study.user_attrs[records.FINGERPRINT].get(name, "None"))


# Options of each command ---------------------------------------------------------------------------------


def _words_of(study: optuna.Study, skip: Sequence[str] = ()) -> _Words:
    """What the command line changed of the study file, then what this kind of study has of its own."""
    words, plan = _Words(), records.plan_of(study)
    command = _COMMANDS[plan.kind]
    for name, value in study.user_attrs.get(records.CHANGES, {}).items():
        if name in skip:
            continue
        if name not in command.changes:
            words.unsaid.append(f"{name} was {value!r} instead of the study file's: write it in there")
        elif name == "budget":
            given = {k: v for k, v in value.items() if v is not None and (k, v) != ("batch", 1)}
            words.add(name, ",".join(f"{k}={v}" for k, v in given.items()))
        else:
            words.add(name, value)
    if "latency" in plan.plan.budget:
        words.unsaid.append("the latency budget is measured again, and comes out a little different")
    if command.own is not None:
        command.own(plan, study, words)
    return words


def _of_comparison(plan: Comparison, study: optuna.Study, words: _Words) -> None:
    words.add("arms", ",".join(plan.arms))
    seed = plan.plan.seed_cost()
    own = {r: value for r in RESOURCES if (value := _setting(study, f"budget.{r}")) is not None}
    if list(plan.budgets) != [Budget(**own).absolute(seed) if own else {}]:
        shares = [_share(budget, seed) for budget in plan.budgets]
        known = [str(share) for share in shares if share is not None]
        words.unsaid += [
            f"budget {amounts(budget)}: no share of the seed network's cost"
            for budget, share in zip(plan.budgets, shares, strict=True)
            if share is None
        ]
        if known:
            words.add("budgets", ",".join(known))
    if plan.repeats != 1:
        words.add("repeats", plan.repeats)
    if plan.cost is not None:
        words.add("cost", plan.cost)


def _share(budget: Mapping[str, float], seed: Mapping[str, float]) -> Fraction | None:
    """The simplest share of the seed network's cost that is this budget, rounded down to whole numbers."""
    counted = [(int(budget[r]), int(seed[r])) for r in COUNTED if r in budget]
    if not counted:
        return Fraction(budget["latency"] / seed["latency"]).limit_denominator(10_000)
    low = max(Fraction(limit, whole) for limit, whole in counted)
    high = min(Fraction(limit + 1, whole) for limit, whole in counted)
    if low >= high:
        return None
    simple = (Fraction(math.ceil(low * n), n) for n in range(1, 10_001))
    return next((share for share in simple if share < high), low)


def _of_probe(plan: Probe, study: optuna.Study, words: _Words) -> None:
    widths = plan.plan.widths
    inflated: list[tuple[str, str]] = []
    scales: list[str] = []
    for name, start in plan.starts.items():
        if name == PLAIN:
            continue
        if start.layer is None and name == "constant":
            made = dict.fromkeys(widths, max(widths.values()))
        else:
            factor = name.rpartition(" x")[2]
            changed = widths if start.layer is None else (start.layer,)
            made = {v: max(1, round(w * float(factor))) if v in changed else w for v, w in widths.items()}
            if start.layer is None:
                scales.append(factor)
            else:
                inflated.append((start.layer, factor))
        if made != start.widths:
            words.unsaid.append(f"the start {name!r} has widths that its rounded factor does not give")
    last = inflated[-len(widths) :]
    each = last == [(v, last[0][1]) for v in widths] if last else False
    for layer, factor in inflated[: len(inflated) - len(widths) * each]:
        words.add("inflate", f"{layer}={factor}")
    if each:
        words.options.append("--each")
        words.add("factor", last[0][1])
    if scales:
        words.add("scale", ",".join(scales))
    if "constant" in plan.starts:
        words.options.append("--constant")
    if plan.again:
        words.add("again", plan.again)
    if plan.plan.at_least and not _more_rounds(study, "probe"):
        words.add("rounds", plan.plan.at_least)


def _of_pruners(plan: PrunerPlan, study: optuna.Study, words: _Words) -> None:
    words.add("pruners", ",".join(plan.pruners))
    simple = {level: Fraction(level).limit_denominator(1000) for level in plan.levels}
    words.add("levels", ",".join(str(f if float(f) == level else level) for level, f in simple.items()))


class _Command(NamedTuple):
    """A command of the command line: what it may change of a study, and what else it is told."""

    verb: str
    changes: tuple[str, ...]
    own: Callable[[Any, optuna.Study, _Words], None] | None = None


#: What begins a study of each kind.
_COMMANDS: dict[StudyKind, _Command] = {
    "search": _Command("launch", ("budget", "rounds", "replicas", "seeds", "final_seeds", "pruner")),
    "comparison": _Command("compare", ("report_seeds",), _of_comparison),
    "probe": _Command("probe", ("report_seeds",), _of_probe),
    "pruners": _Command("pruners", ("seeds",), _of_pruners),
}
