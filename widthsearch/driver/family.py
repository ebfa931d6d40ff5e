"""A family: one study per budget, each with its verdict, run one after the other by one driver.

All members are in the database before the first one starts, so that to resume a family is to resume its
members in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from widthsearch.database.connection import open_storage
from widthsearch.database.ledger import Progress
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import Family, family_of
from widthsearch.driver import launch as search
from widthsearch.driver.launch import Backend, Ended, check_names, create, refuse_existing
from widthsearch.driver.prepare import budgets_of, prepare, under_budget
from widthsearch.errors import UsageError
from widthsearch.stopping import stop_on_signals
from widthsearch.study.budget import Budget
from widthsearch.study.study import Study, load_study

log = logging.getLogger(__name__)


def launch(
    reference: str, *, shares: Sequence[str] | None, changes: Mapping[str, Any], **options: Any
) -> Ended:
    """Start a study, or with ``shares`` a family of them.  Options as in :func:`.search.launch`."""
    if shares is None:
        return search.launch(reference, changes=changes, **options)
    if "budget" in changes:
        raise UsageError(f"--budgets {','.join(shares)}: give one budget (--budget) or several, not both")
    return launch_family(reference, shares=shares, changes=changes, **options)


def resume(name: str | None, *, url: str, rounds: int | None = None, **options: Any) -> Ended:
    """Go on with a study or a family, whichever has this name.  Options as in :func:`.search.resume`."""
    family = family_of(name, open_storage(url, create=False, patient=True))
    if family is None:
        return search.resume(name, url=url, rounds=rounds, **options)
    if rounds is not None:
        raise UsageError(
            f"--rounds: {family.name!r} is a family; give more rounds to one of {', '.join(family.members)}"
        )
    return resume_family(family, url=url, **options)


def launch_family(
    reference: str,
    *,
    shares: Sequence[str],
    name: str | None,
    url: str,
    changes: Mapping[str, Any],
    backend: Backend,
    progress: Progress,
    checkpoints: str | None = None,
) -> Ended:
    """Start one study per budget from a study file, and run them, from the smallest budget to the largest.

    ``shares`` of the seed's cost, such as ``1/16``: each is the budget of one member, ``NAME-1-16``, in all
    resources that the study's own budget limits.  Everything else is as in :func:`.search.launch`.  Raises
    :class:`UsageError` for a bad study or share, or if a name is taken; nothing is written then.
    """
    written, path, attribute = load_study(reference)
    study = replace(written, **changes)
    name = path.stem if name is None else name
    budgets = _members(name, study, shares)
    family = Family(name, tuple(budgets))
    check_names(url, name, *budgets, family=family)
    prepared = prepare(replace(study, budget=list(budgets.values())[-1]), path)
    studies = {member: replace(study, budget=budget) for member, budget in budgets.items()}
    members = {member: under_budget(prepared, of) for member, of in studies.items()}
    storage = open_storage(url, create=True, patient=True)
    with driver_lock(url, name):
        refuse_existing(storage, name, *budgets, family=family)  # again: somebody may have been faster
        for member, found in members.items():
            with driver_lock(url, member):
                create(
                    storage,
                    url,
                    member,
                    source={"file": str(path), "name": attribute},
                    changes={**changes, "budget": budgets[member]},
                    prepared=found,
                    plan=found.plan,
                    checkpoints=checkpoints,
                    family=family,
                )
        return _run(family, url=url, file=None, force=False, backend=backend, progress=progress)


def resume_family(
    family: Family,
    *,
    url: str,
    file: str | None,
    force: bool,
    backend: Backend,
    progress: Progress,
    checkpoints: str | None = None,
) -> Ended:
    """Go on with a family; its finished members stay as they are.  Arguments as in :func:`.search.resume`."""
    with driver_lock(url, family.name):
        return _run(
            family,
            url=url,
            file=file,
            force=force,
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
        )


def _run(family: Family, **options: Any) -> Ended:
    """Run the members one after the other.  One that fails does not keep the others from their verdict."""
    failed: Ended | None = None
    with stop_on_signals(family.name):  # between two members; each has its own while it runs
        try:
            for number, member in enumerate(family.members, start=1):
                log.info("%s: member %d of %d is %s", family.name, number, len(family.members), member)
                ended = search.resume(member, **options)
                if ended.status == "interrupted":
                    return replace(ended, name=family.name)
                if ended.status == "failed" and failed is None:
                    failed = Ended(family.name, "failed", f"{member}: {ended.because}")
        except KeyboardInterrupt:
            return Ended(family.name, "interrupted", "interrupted")
    return failed or Ended(family.name, "finished", "every member is finished")


def _members(family: str, study: Study, shares: Sequence[str]) -> dict[str, Budget]:
    """Name -> budget of each member, the smallest first.

    Names are as good in a file name, a URL or a shell as that of the family.
    """
    budgets = dict(zip(shares, budgets_of(study, shares), strict=True))
    exact = {share: Fraction(share.removesuffix("x")) for share in budgets}
    if len(set(exact.values())) < len(shares):
        raise UsageError(f"--budgets {','.join(shares)}: give each budget once, e.g. 1/16,1/8,1/4,1/2")
    order = sorted(budgets, key=lambda share: exact[share])
    return {f"{family}-{share.removesuffix('x').replace('/', '-')}": budgets[share] for share in order}
