"""How widths, amounts and candidates are said, wherever that is: on a terminal, in a log, in an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from widthsearch.maths.cost import shown

UNITS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def joined(widths: Mapping[str, int]) -> str:
    """``8-6-9-7-8-11-45``."""
    return "-".join(map(str, widths.values()))


def counted(n: int, thing: str) -> str:
    """``1 repeat``, ``2 repeats``."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def amounts(cost: Mapping[str, float | None]) -> str:
    """A budget, or what a network costs: ``32,752 MACs, 3,037 parameters``, ``1.2 ms latency``."""
    known = ((r, amount) for r, amount in cost.items() if amount is not None)
    return ", ".join(shown(r, amount, called=UNITS[r]) for r, amount in known)


def as_typed(cost: Mapping[str, float]) -> str:
    """A budget as it is given: ``macs=32752, params=3037``, ``latency=1.2ms``."""
    return ", ".join(f"{r}={1e3 * v:.4g}ms" if r == "latency" else f"{r}={v}" for r, v in cost.items())


def candidate_name(round_: int, step: float) -> str:
    """``round 1, step 0.5``, of the round that is 0 in the database; of round -1: ``uniform widths``."""
    if round_ >= 0:
        return f"round {1 + round_}, step {step:g}"
    return "cost-aware widths" if step else "uniform widths"


def file_and_name(reference: str) -> tuple[str, str]:
    """The parts of ``path/to/file.py:name``; without a name an empty one."""
    file, colon, name = reference.rpartition(":")
    return (file, name) if colon and file.endswith(".py") else (reference, "")


def slug(name: str) -> str:
    """As much of a study's name as every file system takes; other names may have the same."""
    return "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in name)[:60]


def in_code(text: str) -> str:
    """As code in a cell of a Markdown table, whatever is in it."""
    fence = "``" if "`" in text else "`"
    inner = f" {text} " if "`" in text else text
    return f"{fence}{inner}{fence}".replace("|", "\\|")


def named(name: str, *options: str) -> list[str]:
    """The words of a command line behind its verb: the name of a study, and options.

    A name that looks like an option comes last, behind ``--``.
    """
    return [*options, "--", name] if name.startswith("-") else [name, *options]


def not_run_lines(modules: Iterable[str]) -> list[str]:
    """A line per module that no example runs: it would break where a training runs it at other widths."""
    return [
        f"not run by any example: {module} (one that runs it: Study(examples=[...]))" for module in modules
    ]


def alone_lines(reason: str | None) -> list[str]:
    """Why networks are trained one by one; none where that was not to be otherwise, or they are not."""
    return [f"trained one by one, for all Study(pack=...): {reason}"] if reason else []
