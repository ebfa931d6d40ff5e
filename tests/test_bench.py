"""Measured speed: networks are timed in turn, and what is printed is what was measured."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MODEL, Finished, assert_refused, command, interrupt, write_study
from rich.console import Console
from torch import nn

from widthsearch.show.bench_table import show_bench
from widthsearch.speed import bench

CPU = torch.device("cpu")


def test_a_batch_repeats_the_examples_samples() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert bench.batch_of(x, 1, CPU).tolist() == [[1, 2]]
    assert bench.batch_of(x, 5, CPU).tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    table, scale = torch.zeros(7, 3), torch.tensor(2.0)
    batch = bench.batch_of({"x": x, "table": table, "scale": scale, "flag": True}, 3, CPU)
    assert batch["x"].shape == (3, 2)
    assert batch["table"] is table and batch["scale"] is scale and batch["flag"] is True
    assert bench.batch_of((x, x[:, 0]), 4, CPU)[1].tolist() == [1, 3, 1, 3]


def test_blocks_alternate_and_tell_fast_from_slow() -> None:
    order: list[str] = []

    def sleeper(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return call

    threads = torch.get_num_threads()
    found = bench.alternating({"a": sleeper("a", 0.002), "b": sleeper("b", 0.006)}, threads=1, passes=6)
    assert torch.get_num_threads() == threads
    assert {k: v.shape for k, v in found.items()} == {"a": (6,), "b": (6,)}
    assert found["a"].min() >= 0.002 and found["b"].min() >= 0.006
    # A block is two calls to warm up and a timed one: both names in every pass.
    blocks = ["".join(order)[i : i + 3] for i in range(len(order) - 36, len(order), 3)]
    assert [set(pair) for pair in zip(blocks[::2], blocks[1::2], strict=True)] == [{"aaa", "bbb"}] * 6


def test_rows_hold_medians_and_ratios_within_a_pass() -> None:
    nets = {"wide": nn.Linear(512, 512), "narrow": nn.Linear(512, 8)}
    rows = bench.bench(
        nets, torch.zeros(2, 512), batches=[1, 256], device=CPU, threads=1, compile=False, passes=40
    )
    assert [(r["batch"], r["mode"], r["network"]) for r in rows] == [
        (b, "eager", n) for b in (1, 256) for n in nets
    ]
    for r in rows:
        own = r["latency"]
        assert 0 < own["fastest"] <= own["q1"] <= own["median"] <= own["q3"]
        assert r["throughput"] == pytest.approx(r["batch"] / own["median"])
        assert r["blocks"] == 40
    assert all(r["ratio"] == {"median": 1, "q1": 1, "q3": 1} for r in rows if r["network"] == "wide")
    assert rows[3]["ratio"]["median"] < 0.8  # 256 samples: 67 million MACs against one


def test_networks_are_measured_in_eval_mode_and_without_gradients() -> None:
    seen = []

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
            return x

    bench.time_networks({"it": Looks()}, torch.zeros(1), threads=2, passes=2)
    assert set(seen[1:]) == {(False, True, 2)}


# The command ---------------------------------------------------------------------------------------------


def measured(url: str, *args: str) -> dict[str, Any]:
    file = Path(url.removeprefix("sqlite:///")).with_name("tiny.py")
    result = command("bench", "--storage", url, "--study", file, "--json", *args)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_bench_measures_the_networks_of_a_study(finished: Finished) -> None:
    b = measured(finished.url, "--batch", "1,8", "--no-compile", "--threads", "1")
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    assert (b["study"], b["device"], b["threads"], b["dtype"]) == ("tiny", "cpu", 1, "float32")
    names = [n["name"] for n in b["networks"]]
    assert names[:2] == ["seed", "uniform"] and len(names) == (3 if shown["candidate"] else 2)
    for n, of in zip(b["networks"], ("seed", "baseline", "candidate"), strict=False):
        assert {k: n[k] for k in ("widths", "macs", "params")} == {
            k: shown[of][k] for k in ("widths", "macs", "params")
        }
        assert n["macs_ratio"] == n["macs"] / shown["seed"]["macs"]
        assert n["params_ratio"] == n["params"] / shown["seed"]["params"]
    assert [(r["batch"], r["network"]) for r in b["timings"]] == [(s, n) for s in (1, 8) for n in names]
    console = Console(file=io.StringIO(), width=160)
    show_bench(console, b, "eager")
    page = console.file.getvalue()  # type: ignore[attr-defined]
    assert b["machine"] in page and "1 thread," in page
    for n in b["networks"]:
        assert f"{n['macs']:,}" in page and f"{n['macs_ratio']:.1%}" in page
        assert "-".join(map(str, n["widths"].values())) in page
    for r in b["timings"]:
        low, middle, high = (f"{1e3 * r['latency'][q]:.3g}" for q in ("q1", "median", "q3"))
        assert f"{middle} ({low} to {high})" in page
        assert f"{r['ratio']['median']:.1%}" in page and f"{r['throughput']:,.0f}" in page


@pytest.mark.usefixtures("working_folder")
def test_bench_of_a_search_under_way_has_what_there_is(tiny: Path) -> None:
    interrupt(tiny, 1)
    before = Path("widthsearch.db").read_bytes()
    b = measured("sqlite:///widthsearch.db", "--batch", "2", "--no-compile")
    assert [n["name"] for n in b["networks"]] == ["seed", "uniform"]
    assert Path("widthsearch.db").read_bytes() == before  # it only looks


@pytest.mark.parametrize("batch", ["", "0", "1,1", "one", "1,-2", "1.5"])
def test_batches_that_are_none_are_refused(batch: str, finished: Finished) -> None:
    assert_refused(
        command("bench", "--storage", finished.url, "--study", finished.file, "--batch", batch),
        repr(batch),
        "1,32,256",
    )


@pytest.mark.usefixtures("working_folder")
def test_a_network_that_changed_is_refused(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    interrupt(file, 2)
    text = file.read_text()
    file.write_text(text.replace("nn.Linear(16, 12), nn.Linear(12, 3)", "nn.Linear(16, 9), nn.Linear(9, 3)"))
    assert_refused(command("bench", "--no-compile"), "tiny.py has changed since launch", "code of Net")
    assert_refused(command("bench", "--no-compile", "--study", file), "tiny.py", "'tiny'", "not the one")
    file.write_text(text.replace(MODEL, "return Net()  # no other network"))
    assert command("bench", "--no-compile", "--batch", "1").code == 0
    file.unlink()
    assert_refused(command("bench", "--no-compile"), "tiny.py", "--study")


@pytest.mark.usefixtures("working_folder")
def test_a_network_for_one_batch_size_alone_is_refused_at_others(tmp_path: Path) -> None:
    fixed = (
        "torch.relu(self.fc1(x))",
        "torch.relu(self.fc1(x)) + (0 * x).new_zeros(2 if len(x) in (2, 3) else 1, 1)",
    )
    file = write_study(tmp_path, fixed)
    interrupt(file, 2)
    assert_refused(command("bench", "--no-compile", "--batch", "2,3"), "batch of 3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(finished: Finished) -> None:
    assert_refused(
        command("bench", "--storage", finished.url, "--study", finished.file, "--device", "cuda"),
        "cuda",
        "no GPU",
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_torch_compile_is_measured_too(finished: Finished) -> None:
    b = measured(finished.url, "--batch", "4", "--compile")
    names = [n["name"] for n in b["networks"]]
    if not b["notes"]:  # there is a compiler here
        assert [(r["mode"], r["network"]) for r in b["timings"]] == [
            (mode, n) for mode in ("eager", "compile") for n in names
        ]


@pytest.mark.slow
def test_a_compiler_that_fails_is_said_in_one_line() -> None:
    import torch._inductor.config as inductor

    said: list[str] = []
    with inductor.patch({"cpp.cxx": ("/no/compiler",), "force_disable_caches": True}):
        rows = bench.bench(
            {"seed": nn.Sequential(nn.Linear(4, 4), nn.Tanh())},
            torch.zeros(2, 4),
            batches=[1],
            device=CPU,
            threads=1,
            passes=2,
            compile=True,
            say=said.append,
        )
    assert rows == []
    assert "torch.compile does not work here" in said[-1] and "\n" not in said[-1]
