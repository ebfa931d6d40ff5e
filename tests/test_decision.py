"""The sentence a study ends with: one per kind, at every stage, from what was found alone."""

from __future__ import annotations

from typing import Any

import pytest

from widthsearch.report.decision import (
    comparison_decision,
    difference,
    family_decision,
    probe_decision,
    pruners_decision,
    search_decision,
)
from widthsearch.report.progress import seconds_left

DONE: Any = {"done": 9, "at_most": 9, "running": [], "seconds_left": None}
HALF: Any = {"done": 4, "at_most": 9, "running": [], "seconds_left": None}


def gain(mean: float, low: float, high: float, n: int = 14) -> Any:
    return {"mean": mean, "ci95": [low, high], "median": mean, "n": n}


def search(verdict: str | None, of: Any = None, found: bool = True, because: str | None = None) -> Any:
    return {
        "baseline": {"widths": {"a": 9, "b": 9}},
        "candidate": {"widths": {"a": 8, "b": 12}} if found else None,
        "gain": of,
        "verdict": verdict,
        "stopped_because": because,
    }


@pytest.mark.parametrize(
    ("found", "status", "answer", "sentence", "widths"),
    [
        (
            search("better", gain(0.0324, 0.0094, 0.0564)),
            "finished",
            "better",
            "Use 8-12: better than uniform widths by 0.032 in loss (0.009 to 0.056), 14 fresh seeds",
            {"a": 8, "b": 12},
        ),
        (
            search("no difference shown", gain(0.01, -0.01, 0.03)),
            "finished",
            "none better",
            "Stay with uniform widths: none found is shown to be better",
            {"a": 9, "b": 9},
        ),
        (
            search("worse", gain(-2.0, -3.5, -0.5)),
            "finished",
            "none better",
            "Stay with uniform widths: the best found are worse by 2.0 in loss (0.5 to 3.5), 14 fresh seeds",
            {"a": 9, "b": 9},
        ),
        (
            search("nothing better found", gain(0, 0, 0), found=False),
            "finished",
            "none better",
            "Stay with uniform widths: none found is shown to be better",
            {"a": 9, "b": 9},
        ),
        (search(None), "running", "not finished",
         "Not decided yet: 4 of at most 9 trainings; best so far 8-12", None),
        (search(None, found=False), "interrupted", "not finished",
         "Not decided yet: interrupted after 4 of at most 9 trainings", None),
        (search(None, because="all is lost"), "failed", "no verdict",
         "No verdict: the study failed: all is lost", None),
        (search(None), "finished", "no verdict",
         "No verdict: too many of the final trainings failed; best on the seeds that select: 8-12", None),
    ],
)  # fmt: skip
def test_a_search_says_what_to_do(
    found: Any, status: Any, answer: str, sentence: str, widths: dict[str, int] | None
) -> None:
    decision = search_decision(found, status, DONE if status == "finished" else HALF)
    assert decision == {"sentence": sentence, "answer": answer, "widths": widths}


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (gain(0.0206, 0.0014, 0.0397), "0.021 in loss (0.001 to 0.040)"),
        (gain(0.0206, 0.0003, 0.0397), "0.0206 in loss (0.0003 to 0.0397)"),  # not "0.000"
        (gain(3.0, 3.0 - 1e-15, 3.0 + 1e-15), "3.000 in loss (3.000 to 3.000)"),
        (gain(0.0, 0.0, 0.0), "0.00 in loss (0.00 to 0.00)"),
        (gain(123.4, 100, 146.8), "123 in loss (100 to 147)"),
        (gain(3e-6, 1e-6, 5e-6), "0.0000030 in loss (0.0000010 to 0.0000050)"),
    ],
)
def test_digits_follow_the_interval(of: Any, says: str) -> None:
    assert difference(of).startswith(says)


def arm(name: str, over_uniform: Any, p_holm: float | None = None) -> Any:
    p = p_holm if p_holm is not None else 0.001 if over_uniform["ci95"][0] > 0 else 0.5
    return {"arm": name, "gain_over_uniform": {**over_uniform, "p_holm": p}}


def test_what_is_better_beside_many_others_is_said_by_the_adjusted_p_value_alone() -> None:
    """An interval is that of its own difference: of many some leave out 0 by chance."""
    under: Any = {"budget": {"macs": 500, "params": None, "latency": None}}
    uniform, worse = arm("uniform", gain(0, 0, 0)), arm("gp", gain(-0.3, -0.5, -0.1), 0.01)
    arms = [uniform, arm("tpe", gain(0.3, 0.1, 0.5), 0.06), worse]
    assert comparison_decision([under | {"arms": arms}], "finished", DONE)["answer"] == "none better"
    arms[1] = arm("tpe", gain(0.3, 0.1, 0.5), 0.04)
    said = comparison_decision([under | {"arms": arms}], "finished", DONE)
    assert said["answer"] == "better" and "tpe" in said["sentence"] and "gp" not in said["sentence"]


def test_a_comparison_names_the_arms_that_are_better_than_uniform() -> None:
    of = {"macs": 500, "params": None, "latency": None}
    good, none = gain(0.3, 0.1, 0.5), gain(0.1, -0.1, 0.3)
    arms = [arm("uniform", gain(0, 0, 0)), arm("tpe", gain(0.2, 0.1, 0.3)), arm("grow-shrink", good)]
    under: Any = {"budget": of, "arms": [*arms, arm("gp", none)]}
    found = comparison_decision([under], "finished", DONE)
    assert found["answer"] == "better" and found["widths"] is None
    assert found["sentence"] == (
        "Most is won by grow-shrink: better than uniform widths by 0.30 in loss (0.10 to 0.50), "
        "14 fresh seeds; also better: tpe"
    )
    poor: Any = {"budget": of | {"macs": 250}, "arms": [arms[0], arm("gp", none)]}
    assert comparison_decision([poor], "finished", DONE)["answer"] == "none better"
    assert (
        "At 250 MACs and 9 parameters: "
        in comparison_decision([poor | {"budget": of | {"macs": 250, "params": 9}}, under], "finished", DONE)[
            "sentence"
        ]
    )
    same = comparison_decision([poor, poor], "finished", DONE)
    assert same["sentence"] == "No arm is shown to be better than uniform widths, at all 2 budgets"
    both = comparison_decision([poor, under], "finished", DONE)
    assert both["sentence"].startswith("At 250 MACs: no arm is shown to be better")
    assert "; at 500 MACs: most is won by grow-shrink" in both["sentence"]
    alone: Any = {"budget": of, "arms": arms[:1]}
    assert comparison_decision([alone], "finished", DONE)["answer"] == "no verdict"
    assert comparison_decision([], "running", HALF)["answer"] == "not finished"


def start(name: str, over_plain: Any, back_after: int | None = None, same_as: str | None = None) -> Any:
    return {"start": name, "gain_over_plain": over_plain, "back_after": back_after, "same_as": same_as}


def test_a_probe_says_whether_the_start_matters() -> None:
    plain, back = start("plain", gain(0, 0, 0)), start("wide", gain(0.1, -0.1, 0.3), back_after=1)
    same, none = start("same", gain(0, 0, 0), same_as="plain"), start("lost", None)
    found = probe_decision([plain, back, same, none], 1.5, "finished", DONE)
    assert found["answer"] == "none better"
    assert "1 of 2 other starts came back to its widths (within a factor 1.5)" in found["sentence"]
    better = start("narrow", gain(0.3, 0.1, 0.5))
    found = probe_decision([plain, back, better], 1.5, "finished", DONE)
    assert found["answer"] == "better"
    assert found["sentence"].startswith("Better than the plain start: narrow by 0.30 in loss")
    assert probe_decision([plain, none], 1.5, "finished", DONE)["answer"] == "no verdict"
    assert probe_decision([plain], 1.5, "interrupted", HALF)["answer"] == "not finished"


def test_pruners_are_ranked_where_the_seeds_allow_it() -> None:
    def winner(of: Any) -> Any:
        return {"pruner": "l0", "next": "obd", "quality": "val_accuracy", "gain": of}

    winners = {"weights": winner(gain(0.03, 0.01, 0.05)), "MACs": winner(gain(0.01, -0.01, 0.03))}
    found = pruners_decision(winners, "finished", DONE)
    assert found["answer"] == "better"
    assert found["sentence"] == (
        "At equal weights l0 is best, better than obd by 0.030 in accuracy (0.010 to 0.050); "
        "at equal MACs no difference between l0 and obd is shown"
    )
    assert pruners_decision({"MACs": winner(None)}, "finished", DONE)["answer"] == "no verdict"
    assert pruners_decision({"MACs": None}, "finished", DONE)["answer"] == "no verdict"
    assert pruners_decision(winners, "running", HALF)["answer"] == "not finished"


def test_a_family_says_at_which_budgets() -> None:
    def member(macs: int, answer: str) -> Any:
        return {"budget": {"macs": macs}, "decision": {"answer": answer}}

    members = [member(250, "better"), member(500, "none better"), member(1000, "better")]
    found = family_decision(members, "finished")
    assert found["answer"] == "better"
    assert found["sentence"] == (
        "Use the widths found at 250 MACs, 1,000 MACs; stay with uniform widths at 500 MACs"
    )
    alike = family_decision([member(250, "none better"), member(500, "none better")], "finished")
    assert alike["sentence"] == "Stay with uniform widths at all 2 budgets"
    assert family_decision([*members, member(2000, "not finished")], "running")["answer"] == "not finished"


def test_the_time_left_goes_by_what_each_kind_took() -> None:
    expected = {"measure": 4, "score": 10, "baseline": 2}
    assert seconds_left(expected, {}, 2) is None
    # 3 measures of 7 s, 9 scores of 2 s, and 2 baselines that are taken to last as long as scores
    assert seconds_left(expected, {"measure": [7.0], "score": [2.0]}, 1) == 3 * 7 + 9 * 2 + 2 * 2
    assert seconds_left(expected, {"measure": [7.0], "score": [2.0]}, 2) == 43 / 2
    assert seconds_left({"score": 1}, {"score": [2.0, 2.0]}, 1) == 0  # more than were expected
