"""``draw``: every variable with its numbers, to scale; ties; odd names; what is refused."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import optuna
import pytest
from commands import (
    HEADER,
    MODEL,
    TRIALS,
    URL,
    Edit,
    Finished,
    assert_refused,
    command,
    interrupt,
    write_study,
)
from hypothesis import given
from hypothesis import strategies as st
from played import play

from widthsearch.database.records import modules_of, plan_of
from widthsearch.report.search import summarise
from widthsearch.show.drawing import draw_architecture
from widthsearch.show.drawing import drawn as drawn_of
from widthsearch.show.formats import title
from widthsearch.show.ties import lanes, skips_of, ties_of

pytestmark = pytest.mark.usefixtures("working_folder")

NETWORKS = ("seed", "uniform", "over-wide", "recommended", "best found")


class Block(NamedTuple):
    width: int
    height: float
    fill: str


def chain(widths: Sequence[int]) -> Edit:
    """The study file's model as a chain of linear layers of these widths."""
    sizes = [8, *widths, 3]
    layers = ", nn.ReLU(), ".join(f"nn.Linear({a}, {b})" for a, b in zip(sizes, sizes[1:], strict=False))
    return (MODEL, f"return nn.Sequential({layers})")


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{tag}")


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in elements(svg, "text")]


def blocks(svg: str) -> dict[tuple[str, str], Block]:
    """(network, variable) -> its block, as the picture's tooltips tell."""
    found = {}
    for rect in elements(svg, "rect"):
        if rect.get("class") in NETWORKS:
            says = rect[0].text or ""
            match = re.match(rf"(.*), {rect.get('class')}: (\d+) units", says, re.DOTALL)
            assert match is not None, says
            key = (str(rect.get("class")), match[1])
            assert key not in found
            found[key] = Block(int(match[2]), float(rect.get("height", 0)), str(rect.get("fill")))
    return found


def drawn(study: optuna.Study) -> tuple[str, dict[str, Any]]:
    summary = summarise(study, URL)
    return drawn_of(study, summary), summary


@pytest.mark.sample(2)
@pytest.mark.parametrize("many", [1, 5, 50])
def test_every_variable_is_drawn_with_its_numbers(tmp_path: Path, many: int) -> None:
    widths = [40 + 9 * (k % 11) for k in range(many)]
    svg, summary = drawn(play(write_study(tmp_path, chain(widths)), URL, 10))
    last, found, said = summary["rounds"][-1], blocks(svg), texts(svg)
    networks = {
        "seed": summary["seed"]["widths"],
        "uniform": summary["baseline"]["widths"],
        "over-wide": last["over_wide"],
    }
    if summary["candidate"] is not None:  # there is nothing to move in one layer
        networks[title(summary)] = summary["candidate"]["widths"]
    assert len(networks) == 3 + (many > 1)
    for network, of in networks.items():
        assert {v: found[network, v].width for v in summary["seed"]["widths"]} == of
        for width in set(of.values()):
            assert said.count(str(width)) >= list(of.values()).count(width)
    assert len(found) == len(networks) * many
    for v, p in last["prune_ratio"].items():
        assert v in said
        assert f"{p:.2f}" in said
    assert len({found["over-wide", v].fill for v in last["prune_ratio"]}) > many // 2  # colours differ
    assert "made by" not in svg  # nothing is tied


@pytest.mark.parametrize("widths, own", [([64, 64, 1, 200, 100], False), ([1, 8, 16, 4096, 12, 20], True)])
def test_heights_are_in_the_scale_that_the_picture_states(
    tmp_path: Path, widths: list[int], own: bool
) -> None:
    """On a summary whose widths were replaced: a layer of one unit cannot be searched."""
    _, summary = drawn(play(write_study(tmp_path, chain([9] * len(widths))), URL, 10))
    names = list(summary["seed"]["widths"])
    summary["seed"]["widths"] = dict(zip(names, widths, strict=True))
    svg = draw_architecture(summary)
    assert ("the widest of its own column" in svg) == own
    found = blocks(svg)
    scale = {b.height / b.width for b in found.values()}
    if own:  # a scale for each variable
        for v in names:
            column = [b for (_, variable), b in found.items() if variable == v]
            assert max(b.height for b in column) == pytest.approx(150)
            ratios = [b.height / b.width for b in column]
            assert max(ratios) == pytest.approx(min(ratios), rel=1e-3)
    else:
        assert max(scale) == pytest.approx(min(scale), rel=1e-3)
        assert max(b.height for b in found.values()) == pytest.approx(150)
        stated = re.search(r"1 unit is ([\d.e-]+) px high", svg)
        assert stated is not None
        assert float(stated[1]) == pytest.approx(min(scale), rel=0.01)


ODD = ["a<b", "c&d", "\"q'", "größe☃", "x" * 200, "%{x}", "]]>", "tab\tbell\x07", "-- -->", " "]


def test_odd_names_are_well_formed_and_kept(tmp_path: Path) -> None:
    edit = "layers = []\n    for k, name in enumerate(NAMES):\n"
    edit += "        layers += [(name, nn.Linear(12 if k else 8, 12)), (f'relu{k}', nn.ReLU())]\n"
    edit += "    from collections import OrderedDict\n"
    edit += "    return nn.Sequential(OrderedDict([*layers, ('out', nn.Linear(12, 3))]))"
    file = write_study(tmp_path, (HEADER, f"NAMES = {ODD!r}\n\n\n{HEADER}"), (MODEL, edit))
    svg, _ = drawn(play(file, URL, 10))
    kept = {v for network, v in blocks(svg) if network == "seed"}
    assert kept == {name.replace("\x07", "\N{REPLACEMENT CHARACTER}") for name in ODD}
    assert max(len(text) for text in texts(svg) if "x" * 9 in text) == 24  # shortened beside the block


# Ties ----------------------------------------------------------------------------------------------------

RESIDUAL = """class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 16)
        self.c, self.d, self.out = nn.Linear(16, 10), nn.Linear(10, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.b(torch.relu(self.a(x)))
        return self.out(x + self.d(torch.relu(self.c(x))))


"""


def test_a_residual_stage_is_bracketed_over_what_it_spans(tmp_path: Path) -> None:
    file = write_study(tmp_path, (HEADER, RESIDUAL + HEADER), (MODEL, "return Residual()"))
    study = play(file, URL, 10)
    svg, summary = drawn(study)
    assert list(summary["seed"]["widths"]) == ["stem", "a", "c"]
    ties = ties_of(modules_of(study), list(summary["seed"]["widths"]))
    assert {v: (t.modules, t.places) for v, t in ties.items()} == {
        "stem": (("stem", "b", "d"), (0, 1.5, 2.5))
    }
    assert texts(svg).count("made by 3 modules") == 1
    assert "stem: made by stem, b, d" in svg
    assert "made by" not in draw_architecture(summary)  # a study that does not know them
    # The one module is one maker, however often it is run.
    again = [*modules_of(study), ("stem", "stem")]
    assert ties_of(again, list(summary["seed"]["widths"])) == ties


UNET = """class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 20)
        self.up2, self.up1, self.out = nn.Linear(32, 12), nn.Linear(28, 16), nn.Linear(16, 3)

    def forward(self, x):
        a = torch.relu(self.down1(x))
        b = torch.relu(self.down2(a))
        c = torch.cat([torch.relu(self.bottom(b)), b], 1)
        return self.out(torch.relu(self.up1(torch.cat([torch.relu(self.up2(c)), a], 1))))


"""


def test_skips_are_arrows_from_where_units_are_made_to_where_they_are_read_again(tmp_path: Path) -> None:
    file = write_study(tmp_path, (HEADER, UNET + HEADER), (MODEL, "return Unet()"))
    study = play(file, URL, 10)
    svg, summary = drawn(study)
    variables = list(summary["seed"]["widths"])
    assert variables == ["down1", "down2", "bottom", "up2", "up1"]
    skips = skips_of(plan_of(study).plan.cost, {}, variables)
    assert skips == {(0, 4): "down1 is read by up1 too", (1, 3): "down2 is read by up2 too"}
    assert all(tooltip in svg for tooltip in skips.values()) and "read again there" in texts(svg)
    assert "read again there" not in draw_architecture(summary)


def test_a_densely_connected_network_is_not_covered_by_arrows(tmp_path: Path) -> None:
    layers = "nn.ModuleList([nn.Linear(8 + 12 * k, 12) for k in range(9)])"
    dense = f"""class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.out = {layers}, nn.Linear(8 + 9 * 12, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.out(x)


"""
    study = play(write_study(tmp_path, (HEADER, dense + HEADER), (MODEL, "return Dense()")), URL, 10)
    svg, _ = drawn(study)
    assert "28 skips, not drawn" in texts(svg) and "is read by" not in svg


def test_a_residual_stage_has_no_skips_beside_its_bracket(tmp_path: Path) -> None:
    file = write_study(tmp_path, (HEADER, RESIDUAL + HEADER), (MODEL, "return Residual()"))
    svg, _ = drawn(play(file, URL, 10))
    assert "read again there" not in texts(svg)


def test_on_a_phone_the_picture_is_as_wide_as_the_phone(tmp_path: Path) -> None:
    study = play(write_study(tmp_path, chain([40 + k for k in range(13)])), URL, 10)
    summary = summarise(study, URL)
    svg = drawn_of(study, summary, slim=True)
    assert float(ElementTree.fromstring(svg).get("width", 0)) == 340
    assert len(blocks(svg)) == len(blocks(drawn_of(study, summary))) == 4 * 13
    assert texts(svg).count("seed") == 3  # bands of five


def test_a_tie_goes_on_in_the_next_band(tmp_path: Path) -> None:
    _, summary = drawn(play(write_study(tmp_path, chain([12] * 40)), URL, 10))
    variables = list(summary["seed"]["widths"])
    modules = [*((v, v) for v in variables), ("last", variables[0])]  # the first stage ends after the last
    said = texts(draw_architecture(summary, modules))
    assert said.count("made by 2 modules") == 3  # 40 columns: three bands
    assert said.count("seed") == 3


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30))
def test_no_two_brackets_overlap_in_a_lane(ends: list[tuple[int, int]]) -> None:
    spans = {str(k): (float(min(e)), float(max(e))) for k, e in enumerate(ends)}
    lane = lanes(spans)
    assert lane.keys() == spans.keys()
    for one, (a, b) in spans.items():
        for other, (c, d) in spans.items():
            assert one == other or lane[one] != lane[other] or b < c or d < a


# The command ---------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("stop_at", [0, 2, 3, 5, TRIALS - 1])
def test_a_search_is_drawn_at_any_moment(tiny: Path, stop_at: int) -> None:
    interrupt(tiny, stop_at)
    assert command("draw", "-o", "a.svg").code == 0
    svg = Path("a.svg").read_text()
    known = {network for network, _ in blocks(svg)}
    assert ("nothing measured yet" in texts(svg)) == ("over-wide" not in known) == (stop_at < 3)
    assert ("nothing scored yet" in texts(svg)) == ("best found" not in known)


def png_size(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_png_shows_what_svg_shows(finished: Finished) -> None:
    for file in ("a.svg", "a.png"):
        result = command("draw", "tiny", "-o", file, "--storage", finished.url)
        assert (result.code, result.out) == (0, f"drawn into {file}\n")
    root = ElementTree.fromstring(Path("a.svg").read_text())
    width, height = png_size(Path("a.png"))
    assert width == pytest.approx(2 * float(root.get("width", 0)), abs=1)
    assert height == pytest.approx(2 * float(root.get("height", 0)), abs=1)
    assert Path("a.png").stat().st_size > 10_000


def test_what_cannot_be_drawn_is_refused_in_one_line(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(file: str, *args: str) -> Any:
        return command("draw", *args, "-o", file, "--storage", finished.url)

    for file in ("a.pdf", "a", "svg", ".svg", "a.svg.gz"):
        assert_refused(draw(file), repr(file), ".svg or .png")
    assert_refused(draw("nowhere/a.svg"), "'nowhere/a.svg'", "No such file")
    Path("folder.svg").mkdir()
    assert_refused(draw("folder.svg"), "'folder.svg'", "directory")
    assert_refused(draw("a.svg", "nope"), "'nope'", "tiny")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert_refused(draw("a.png"), "'a.png'", "widthsearch[plots]", ".svg")
    assert not list(Path().glob("a*"))


def test_a_comparison_is_no_single_search(tiny: Path) -> None:
    options = ("--arms", "uniform", "--workers", "0", "--storage", URL)
    assert command("compare", tiny, *options).code == 0
    assert_refused(command("draw", "-o", "a.svg"), "'tiny-compare'", "comparison")


@pytest.mark.sample(1)
@pytest.mark.parametrize("ask", [("draw", "-o", "a.svg"), ("bench", "--no-compile")], ids=lambda ask: ask[0])
def test_a_probe_is_no_single_search_either(tiny: Path, ask: tuple[str, ...]) -> None:
    assert command("probe", tiny, "--inflate", "fc1=2", "--workers", "0", "--storage", URL).code == 0
    assert_refused(command(*ask), "'tiny-probe'", "is a probe", "search")
