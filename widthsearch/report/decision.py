"""What a study says to do, in one sentence: a pure function of what was found, one per kind of study."""

from __future__ import annotations

import math
from collections.abc import Sequence

from widthsearch.maths.holm import LEVEL
from widthsearch.maths.intervals import Gain
from widthsearch.plans.words import amounts, counted, joined
from widthsearch.report.types.common import Answer, Decision, Limits, Progress, Status, Widths
from widthsearch.report.types.kinds import ArmFound, OneOfMany, StartFound, UnderBudget, Winner
from widthsearch.report.types.search import Findings, SearchSummary

MOST_WIDTHS = 20  # that are said in a sentence
_MOST_DECIMALS = 12


def difference(gain: Gain) -> str:
    """``0.032 in loss (0.009 to 0.056), 14 fresh seeds``."""
    return f"{_span(gain, ' in loss')}, {counted(gain['n'], 'fresh seed')}"


def shown_better(gain: Gain | None) -> bool:
    """Whether the whole interval is above 0."""
    return gain is not None and gain["ci95"][0] > 0


def significant(gain: OneOfMany | None) -> bool:
    """Whether there is a difference, in whichever direction, beside all others to the same reference."""
    return gain is not None and gain["p_holm"] < LEVEL


def search_decision(found: Findings, status: Status, progress: Progress) -> Decision:
    """Whether to take what a search found, or to stay with uniform widths."""
    gain, candidate, uniform = found["gain"], found["candidate"], found["baseline"]
    result = found["verdict"]
    if result is None and status != "finished":
        best = "" if candidate is None else f"; best so far {_said(candidate['widths'])}"
        return _open(status, progress, best, found["stopped_because"])
    if result is None:
        best = "" if candidate is None else f"; best on the seeds that select: {_said(candidate['widths'])}"
        return _decision("no verdict", f"No verdict: too many of the final trainings failed{best}")
    if candidate is not None and gain is not None and shown_better(gain):
        text = f"Use {_said(candidate['widths'])}: better than uniform widths by {difference(gain)}"
        return _decision("better", text, candidate["widths"])
    why = "none found is shown to be better"
    if candidate is not None and gain is not None and gain["ci95"][1] < 0:
        low, high = gain["ci95"]
        worse: Gain = {**gain, "mean": -gain["mean"], "ci95": [-high, -low]}
        why = f"the best found are worse by {difference(worse)}"
    return _decision("none better", f"Stay with uniform widths: {why}", uniform["widths"])


def comparison_decision(budgets: Sequence[UnderBudget], status: Status, progress: Progress) -> Decision:
    """Which arms find widths that are better than uniform ones, under each budget."""
    if status != "finished":
        return _open(status, progress)
    said = [(_budget(under["budget"]), *_arms(under)) for under in budgets]
    answers: set[Answer] = {answer for _, answer, _ in said}
    texts = [f"at {budget}: {text[:1].lower()}{text[1:]}" for budget, _, text in said]
    if len({text for _, _, text in said}) == 1:
        texts = [said[0][2] + (f", at all {len(said)} budgets" if len(said) > 1 else "")]
    return _decision(_of(answers), _upper("; ".join(texts)))


def probe_decision(
    starts: Sequence[StartFound], within: float, status: Status, progress: Progress
) -> Decision:
    """Whether another start than the plain one leads to better widths, and how many lead to the same."""
    others = [s for s in starts[1:] if s["same_as"] is None]
    if status != "finished":
        return _open(status, progress)
    known = [s for s in others if s["gain_over_plain"] is not None]
    back = sum(s["back_after"] is not None for s in others)
    of = f"{back} of {counted(len(others), 'other start')}"
    ends = f"{of} came back to its widths (within a factor {within:g})"
    better = [(s["start"], s["gain_over_plain"]) for s in known if shown_better(s["gain_over_plain"])]
    if better:
        texts = [f"{start} by {difference(gain)}" for start, gain in better if gain is not None]
        return _decision("better", f"Better than the plain start: {'; '.join(texts)}; {ends}")
    if not known:
        return _decision("no verdict", f"No start could be compared with the plain one; {ends}")
    return _decision("none better", f"No other start is shown to end better than the plain one; {ends}")


def pruners_decision(winners: dict[str, Winner | None], status: Status, progress: Progress) -> Decision:
    """Which pruner is best at equal shares removed; ``winners``: by what is equal, in words."""
    if status != "finished":
        return _open(status, progress)
    said = [(equal, winner) for equal, winner in winners.items() if winner is not None]
    if not said:
        return _decision("no verdict", "No two pruners could be compared")
    texts, answers = [], set[Answer]()
    for equal, winner in said:
        gain, best, second = winner["gain"], winner["pruner"], winner["next"]
        if gain is not None and shown_better(gain):
            unit = " in accuracy" if winner["quality"] == "val_accuracy" else " in loss"
            texts.append(f"at equal {equal} {best} is best, better than {second} by {_span(gain, unit)}")
            answers.add("better")
        elif gain is None:
            texts.append(f"at equal {equal} {best} came out best, on one seed")
            answers.add("no verdict")
        else:
            texts.append(f"at equal {equal} no difference between {best} and {second} is shown")
            answers.add("none better")
    return _decision(_of(answers), _upper("; ".join(texts)))


def family_decision(members: Sequence[SearchSummary], status: Status) -> Decision:
    """At which budgets to take what was found."""
    of: dict[Answer, list[str]] = {}
    for member in members:
        of.setdefault(member["decision"]["answer"], []).append(_budget(member["budget"]))
    said: dict[Answer, str] = {
        "better": "use the widths found at",
        "none better": "stay with uniform widths at",
        "no verdict": "no verdict at",
        "not finished": "not decided yet at",
    }
    if len(of) == 1:
        of = {answer: [f"all {len(members)} budgets"] for answer in of}
    texts = [f"{said[answer]} {', '.join(of[answer])}" for answer in said if answer in of]
    answer = "not finished" if status != "finished" else _of(set(of))
    return _decision(answer, _upper("; ".join(texts)))


def _arms(under: UnderBudget) -> tuple[Answer, str]:
    """What is said of the arms under one budget."""

    def gain_of(arm: ArmFound) -> float:
        return arm["gain_over_uniform"]["mean"] if arm["gain_over_uniform"] is not None else -math.inf

    compared = [a for a in under["arms"] if a["gain_over_uniform"] is not None and a["arm"] != "uniform"]
    if not compared:
        return "no verdict", "No arm could be compared with uniform widths"
    shown = [a for a in compared if significant(a["gain_over_uniform"]) and gain_of(a) > 0]
    better = sorted(shown, key=gain_of, reverse=True)
    if not better:
        return "none better", "No arm is shown to be better than uniform widths"
    first = better[0]["gain_over_uniform"]
    assert first is not None
    also = f"; also better: {', '.join(a['arm'] for a in better[1:])}" if better[1:] else ""
    return (
        "better",
        f"Most is won by {better[0]['arm']}: better than uniform widths by {difference(first)}{also}",
    )


def _open(status: Status, progress: Progress, best: str = "", because: str | None = None) -> Decision:
    """Of a study that has not ended, or that cannot go on."""
    if status == "failed":
        return _decision("no verdict", f"No verdict: the study failed{f': {because}' if because else ''}")
    stopped = "interrupted after " if status == "interrupted" else ""
    far = f"{progress['done']} of at most {counted(progress['at_most'], 'training')}"
    return _decision("not finished", f"Not decided yet: {stopped}{far}{best}")


def _of(answers: set[Answer]) -> Answer:
    """The answer to several questions at once."""
    order: tuple[Answer, ...] = ("better", "not finished", "none better", "no verdict")
    return next((answer for answer in order if answer in answers), "no verdict")


def _decision(answer: Answer, sentence: str, widths: Widths | None = None) -> Decision:
    return {"sentence": sentence, "answer": answer, "widths": widths}


def _said(widths: Widths) -> str:
    return joined(widths) if len(widths) <= MOST_WIDTHS else f"the {len(widths)} widths found"


def _span(gain: Gain, unit: str) -> str:
    """``0.032 in loss (0.009 to 0.056)``.

    Two digits of half the interval, if that is no more than four of the mean; more where an end would be 0.
    """
    low, high = gain["ci95"]
    decimals = max(0, min(_place(gain["mean"]) + 3, _place((high - low) / 2) + 1))
    while decimals < _MOST_DECIMALS and any(x and not float(f"{x:.{decimals}f}") for x in (low, high)):
        decimals += 1
    mean, low_, high_ = (f"{x:.{decimals}f}" for x in (gain["mean"], low, high))
    return f"{mean}{unit} ({low_} to {high_})"


def _place(x: float) -> int:
    """Of the first digit, behind the point: 2 for 0.03, 0 for 3."""
    return min(-math.floor(math.log10(abs(x))), _MOST_DECIMALS) if 0 < abs(x) < math.inf else 1


def _budget(limits: Limits) -> str:
    return amounts(limits).replace(", ", " and ")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
