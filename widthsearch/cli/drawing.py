"""The command that draws: draw."""

from __future__ import annotations

from typing import Annotated

import typer

from widthsearch.cli.options import Name, Storage, app, one_line_errors
from widthsearch.cli.summaries import open_study
from widthsearch.driver.backend import out


@app.command()
@one_line_errors
def draw(
    file: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The picture to write: .svg or .png.")
    ],
    name: Name = None,
    storage: Storage = None,
) -> None:
    """Draw the network before (seed), over-wide and after (recommended), layer by layer, to scale."""
    from widthsearch.database.records import modules_of
    from widthsearch.report.summary import summary_of
    from widthsearch.show import picture
    from widthsearch.show.drawing import draw_architecture
    from widthsearch.show.pages import search_only

    picture.check(file)
    study, url = open_study(name, storage)
    summary = search_only(summary_of(study, url), "draw shows a single search")
    picture.write(draw_architecture(summary, modules_of(study)), file)
    out.print(f"drawn into {file}", markup=False, highlight=False, soft_wrap=True)
