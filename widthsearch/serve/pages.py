"""The pages that only a server has: the list of studies, the question for the token, and what went wrong.

No scripts, nothing from elsewhere; whatever a database says is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from urllib.parse import quote

from widthsearch.errors import UsageError
from widthsearch.report.types.kinds import Summary
from widthsearch.show.formats import age, duration
from widthsearch.show.pages import KINDS

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6675; --line: #e1e5ea; --link: #0060a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333b46; --link: #79b8f2; } body { background: #14181d; } }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; } a { color: var(--link); overflow-wrap: anywhere; } .soft { color: var(--soft); }
article { border-top: 1px solid var(--line); padding: 10px 0; } article p { margin: 2px 0; }
.member { margin-left: 24px; } input, button { font: inherit; padding: 4px 8px; }
"""


UNREAD = "being read"


def list_page(shown: str, found: Mapping[str, Summary | UsageError | None]) -> str:
    """All studies of a database, the latest first; ``shown``: the database, without its password."""
    families = {
        s["family"]: s
        for s in found.values()
        if not isinstance(s, UsageError | None) and s["kind"] == "family"
    }
    of = {member["study"]: name for name, family in families.items() for member in family["members"]}
    entries: dict[str, str] = {}
    for name in reversed([name for name in found if name not in families]):
        if name not in of:
            entries[name] = _entry(name, found[name])
        elif of[name] not in entries:
            family = families[of[name]]
            below = (_entry(member["study"], member, "member") for member in family["members"])
            entries[of[name]] = _entry(family["family"], family) + "".join(below)
    nothing = "<p>no study yet: <code>widthsearch launch my_study.py</code> makes one</p>"
    return _page("studies", f"<p class='soft'>{escape(shown)}</p>{''.join(entries.values()) or nothing}")


def _entry(name: str, summary: Summary | UsageError | None, kind: str = "") -> str:
    if isinstance(summary, UsageError | None):
        says, about = str(summary or UNREAD), ""
    else:
        says, about = summary["decision"]["sentence"], _about(summary)
    link = f"<a href='/studies/{quote(name, safe='', errors='replace')}'>{escape(name)}</a>"
    paragraphs = f"<p><b>{link}</b> {escape(says)}</p><p class='soft'>{about}</p>"
    return f"<article class='{kind}'>{paragraphs}</article>"


def _about(summary: Summary) -> str:
    """``search, running, 12 of at most 60 trainings, at most 3m05s left, changed 2 min ago``."""
    studies = summary["members"] if summary["kind"] == "family" else [summary]
    changed = max((of["last_change"] or "" for of in studies), default="")
    progress = [of["progress"] for of in studies]
    done, most = sum(p["done"] for p in progress), sum(p["at_most"] for p in progress)
    trainings = (
        f"{done} trainings" if summary["status"] == "finished" else f"{done} of at most {most} trainings"
    )
    parts = [KINDS[summary["kind"]].name, summary["status"], trainings]
    if summary["kind"] != "family" and (left := summary["progress"]["seconds_left"]) is not None:
        parts.append(f"at most {duration(left)} left")
    if changed:
        parts.append(f"changed {age(changed)} ago")
    return escape(", ".join(parts))


def login_page(refused: bool) -> str:
    """The question for the token."""
    says = "<p>That is not the token.</p>" if refused else ""
    return _page(
        "widthsearch",
        f"{says}<form method='post' action='/login'><label>Token: <input type='password' name='token' "
        "autofocus required></label> <button>Enter</button></form>",
    )


def message_page(says: str) -> str:
    """One line, and the way back."""
    return _page("widthsearch", f"<p>{escape(says)}</p><p><a href='/'>all studies</a></p>")


def _page(title: str, content: str) -> str:
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1>{content}</body></html>\n"
    )
