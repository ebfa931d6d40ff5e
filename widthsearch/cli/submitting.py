"""Running a command as a Ray job on a cluster (`--submit`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from widthsearch.driver.backend import err, out
from widthsearch.errors import UsageError
from widthsearch.stopping import INTERRUPTED, interrupt, listen


def submit_job(
    server: str,
    verb: str,
    study: str,
    storage: str | None,
    address: str | None,
    options: Mapping[str, Any],
    *arguments: str,
) -> None:
    """Run ``widthsearch VERB ...`` as a Ray job, and show what it prints."""
    from widthsearch.cluster import jobs
    from widthsearch.cluster.environment import prepare_environment, python_files
    from widthsearch.study.study import load_study

    jobs.check_server(server)
    jobs.check_storage(storage)
    _, path, attribute = load_study(study)
    file = f"{path.name}:{attribute}"
    command = ["widthsearch", verb, *arguments, *([file] if verb == "launch" else ["--study", file])]
    for option, value in {**options, "storage": storage, "address": address or "auto"}.items():
        if value is not None:
            name = f"--{option.replace('_', '-')}"
            command += [name] if value is True else [name, str(value)]
    prepare_environment(server)
    job = jobs.Job(server, command, python_files(path))
    out.print(f"job {job.id}\n{job.commands()}", markup=False, highlight=False, soft_wrap=True)
    listen(interrupt)  # from here on there is something to tell when a signal comes
    try:
        status = job.follow(lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        message = f"no longer followed; the job goes on\n{job.commands()}"
        err.print(message, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if status != "SUCCEEDED":
        raise UsageError(f"job {job.id} ended as {status}; its last lines above say why")
