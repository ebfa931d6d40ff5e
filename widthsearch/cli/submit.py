"""Running a command as a Ray job on a cluster (`--submit`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from widthsearch.cli.options import Where, words_of
from widthsearch.errors import UsageError
from widthsearch.show.console import err, say
from widthsearch.stopping import INTERRUPTED, interrupt, listen


def submit_job(
    server: str, verb: str, study: str, where: Where, options: Mapping[str, Any], *arguments: str
) -> None:
    """Run ``widthsearch VERB ...`` as a Ray job, and show what it prints."""
    from widthsearch.cluster import jobs
    from widthsearch.cluster.environment import prepare_environment
    from widthsearch.study.file import load_study

    jobs.check_server(server)
    jobs.check_storage(where.storage)
    file = load_study(study)
    here = f"{next(iter(file.files))}:{file.name}"
    command = ["widthsearch", verb, *arguments, *([here] if verb == "launch" else ["--study", here])]
    command += ["--verbose"] * where.verbose
    command += words_of({**options, **vars(where), "address": where.address or "auto", "verbose": None})
    prepare_environment(server)
    job = jobs.Job(server, command, file.files)
    say(f"job {job.id}\n{job.commands()}")
    listen(interrupt)  # from here on there is something to tell when a signal comes
    try:
        status = job.follow(lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        say(f"no longer followed; the job goes on\n{job.commands()}", err)
        raise typer.Exit(INTERRUPTED) from None
    if status != "SUCCEEDED":
        raise UsageError(f"job {job.id} ended as {status}; its last lines above say why")
