"""How widths and amounts are said, wherever that is: on a terminal, in a log, in an error."""

from __future__ import annotations

from collections.abc import Mapping

from widthsearch.maths.cost import shown

#: What the kinds of trials are called where people watch a search.
LABELS = {
    "measure": "measure",
    "score": "score",
    "baseline": "uniform baseline",
    "report": "fresh seed",
    "pruned": "cut and trained on",
    "sweep": "pruned step by step",
}
REPORT = "report"  # a comparison's branch of the trainings on fresh seeds, of no arm
_CALLED = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def joined(widths: Mapping[str, int]) -> str:
    """``8-6-9-7-8-11-45``."""
    return "-".join(map(str, widths.values()))


def counted(n: int, thing: str) -> str:
    """``1 repeat``, ``2 repeats``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def amounts(cost: Mapping[str, float | None]) -> str:
    """A budget, or what a network costs: ``32,752 MACs, 3,037 parameters``, ``1.2 ms latency``."""
    known = ((r, amount) for r, amount in cost.items() if amount is not None)
    return ", ".join(shown(r, amount, called=_CALLED[r]) for r, amount in known)


def candidate_name(round_: int, step: float) -> str:
    """``round 1, step 0.5``; of round -1 the starts: ``uniform baseline``, ``cost-aware widths``."""
    if round_ >= 0:
        return f"round {round_}, step {step:g}"
    return "cost-aware widths" if step else "uniform baseline"


def slot_name(
    kind: str, round_: int, replica: int, step: float = 0.0, branch: tuple[int, int, str] | None = None
) -> str:
    """A training run: ``round 0 measure 2``, ``budget 1 repeat 0 tpe: round 5 score 0``.

    ``branch``: budget, repeat and arm, in a study of several searches.
    """
    where = f"round {round_} " if kind in ("measure", "score") else ""
    if kind == "score" and step:
        where = f"{where}step {step:g} " if round_ >= 0 else "cost-aware widths "
    if kind == "sweep" and branch is not None:
        where = f"{branch[2]} "
    elif branch is not None:
        budget, repeat, arm = branch
        which = [f"budget {budget}"] if budget >= 0 else []
        which += [f"repeat {repeat}"] if repeat >= 0 else []
        which += [arm] if arm != REPORT else []
        where = f"{' '.join(which)}: {where}"
    return f"{where}{LABELS[kind]} {replica}"


def slug(name: str) -> str:
    """As much of a study's name as every file system takes; other names may have the same."""
    return "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in name)[:60]
