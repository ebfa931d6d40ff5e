"""optuna-dashboard on this machine, with our notes and figures in it; for this machine's browsers alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna

from widthsearch.database import records
from widthsearch.database.connection import Database
from widthsearch.errors import UsageError, describe_error
from widthsearch.show.notes import annotate

REFRESH_SECONDS = 5.0

#: Added to the dashboard's own pages.  Under a budget one width is paid for by the others, so the importance
#: of a single one means nothing.  And from its list of studies one comes to our note first.
_ADDED = b"""<style>
.MuiGrid-item:has(> .MuiCard-root #graph-hyperparameter-importances) { display: none; }
</style><script>
addEventListener("click", event => {
  const link = event.target.closest("a"), listed = /\\/dashboard\\/?$/.test(location.pathname);
  if (!listed || !link || !/\\/studies\\/\\d+$/.test(link.pathname)) return;
  event.preventDefault();
  event.stopPropagation();
  location.assign(link.href + "/note");
}, true);
</script>"""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(database: Database, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, on 127.0.0.1; notes and figures follow the searches.

    ``say`` gets the address once it listens (port 0: any free one).  Raises :class:`UsageError` if the port
    cannot be used.
    """
    from optuna_dashboard import wsgi

    try:
        server = _Server(("127.0.0.1", port), _Quiet)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port}: {describe_error(error)}; give another one") from None
    with server:
        server.set_app(only_from_here(wsgi(database.storage), server.server_port))
        threading.Thread(target=_follow, args=(database, say), daemon=True).start()
        say(f"http://127.0.0.1:{server.server_port}/dashboard (Ctrl-C ends it)")
        server.serve_forever()


def only_from_here(app: App, port: int) -> App:
    """``app`` for its own pages alone: it has no logins, and other pages in the browser could send it orders.

    A page from elsewhere is told by its Origin, one whose name was bent to 127.0.0.1 by its Host.
    """
    ours = {f"127.0.0.1:{port}", f"localhost:{port}"}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_HOST") in ours and (origin is None or urlsplit(origin).netloc in ours):
            return _with_ours(app, environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"this dashboard is for its own pages on this machine alone\n"]

    return guarded


def _with_ours(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The answer of ``app``; of a page with what is :data:`_ADDED`."""
    if not environ.get("PATH_INFO", "").startswith("/dashboard"):
        return app(environ, start_response)
    begun: list[Any] = []
    answer = app(environ, lambda *said: begun.append(said))
    body = b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    status, headers, *rest = begun[-1]
    if body and any(
        name.lower() == "content-type" and value.startswith("text/html") for name, value in headers
    ):
        body = body.replace(b"</head>", _ADDED + b"</head>", 1)
        headers = [(k, str(len(body)) if k.lower() == "content-length" else v) for k, v in headers]
    start_response(status, headers, *rest)
    return [body]


def _follow(database: Database, say: Callable[[str], None]) -> None:
    """Keep the notes and figures of all studies up to date."""
    seen: dict[str, object] = {}
    while True:
        with suppress(Exception):  # a busy database: the next time it is read
            look(database, say, seen)
        time.sleep(REFRESH_SECONDS)


def look(database: Database, say: Callable[[str], None], seen: dict[str, object]) -> None:
    """Write the notes and figures of the studies that have changed since they were ``seen``."""
    for name in records.studies_in(database.storage):
        try:
            study = optuna.load_study(study_name=name, storage=database.storage)
            ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            state: object = (len(ended), study.user_attrs.get(records.STATUS))
            if seen.get(name) != state:
                annotate(study, database.url)
                seen[name] = state
        except Exception as error:  # a study of another version, one deleted meanwhile, a busy database
            trouble = f"notes of {name}: {describe_error(error)}"
            if seen.get(name) != trouble:  # tried every time, told once
                say(trouble)
                seen[name] = trouble
