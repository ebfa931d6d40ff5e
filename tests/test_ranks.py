"""A training by two processes: the same gradients as one process on the whole batch, gates included."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from commands import BUDGET, RECIPE, assert_refused, command, complete, setting, trials, write_study

from widthsearch.driver.prepare import prepare
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import StudyFile, load_study
from widthsearch.training.ranks import Ranks, runner_of

pytestmark = pytest.mark.usefixtures("working_folder")

#: Each rank takes its part of every batch of 32; DistributedDataParallel takes the mean of the gradients.
LOOP = textwrap.dedent("""
    import os
    import time
    from pathlib import Path
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    def train(model, data, report):
        several = distributed.is_initialized()
        rank, number = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        (x, y), (x_val, y_val) = data
        net = DistributedDataParallel(model) if several else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        order = torch.Generator().manual_seed(torch.initial_seed())
        done = report.restore(optimizer=optimizer, order=order)
        for epoch in range(done, 3):
            for batch in torch.randperm(len(x), generator=order).split(32):
                own = batch.chunk(number)[rank]
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[own]), y[own]).backward()
                optimizer.step()
            if rank == 0:
                model.eval()
                with torch.no_grad():
                    report(val_loss=nn.functional.cross_entropy(model(x_val), y_val))
                model.train()
            report.checkpoint(epoch + 1)
            log = Path("epochs.txt")
            if rank == 0:
                log.write_text((log.read_text() if log.exists() else "") + f"{epoch} {os.getpid()}\\n")
            if Path(f"die in {epoch}").exists() and rank == 1:
                Path(f"die in {epoch}").unlink()
                os.kill(os.getpid(), 9)
            if Path("stand still").exists():
                time.sleep(600)
""")


def study_file(folder: Path, processes: int, name: str = "tiny", more: str = "") -> Path:
    loop = ("def model():", f"{LOOP}\n\ndef model():")
    own = (RECIPE, f"train=train,\n    steps=6,\n    processes={processes}{more}")
    return write_study(folder, loop, own, name=name)


def slot(kind: Any, file: StudyFile) -> Slot:
    plan = prepare(file).plan
    return Slot(
        kind, -1 if kind == "baseline" else 0, 0, plan.over_wide_seed if kind == "measure" else plan.baseline
    )


def run(file: StudyFile, of: Slot, folder: Path) -> dict[str, Any]:
    runner = runner_of(file, SearchPlan(prepare(file).plan), (str(folder), "this"))
    try:
        return runner.run_all([of])[0]
    finally:
        runner.close()


@pytest.mark.parametrize("kind", [pytest.param("baseline", marks=pytest.mark.nightly), "measure"])
def test_two_processes_train_as_one(kind: Any, tmp_path: Path) -> None:
    """The mean of both halves of a batch is the mean of the batch: of weights, and of gates."""
    one, two = (load_study(str(study_file(tmp_path, n, name=f"of_{n}"))) for n in (1, 2))
    alone, together = (run(f, slot(kind, f), tmp_path / f.path.stem) for f in (one, two))
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
    assert together["training_macs"] == alone["training_macs"]
    assert together.get("prune_ratio") == alone.get("prune_ratio")


@pytest.mark.nightly
def test_where_one_dies_all_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    file = load_study(str(study_file(tmp_path, 2)))
    of = slot("baseline", file)
    whole = run(file, of, tmp_path / "whole")
    Path("epochs.txt").unlink()
    Path("die in 1").touch()
    ranks = runner_of(file, SearchPlan(prepare(file).plan), (str(tmp_path / "stopped"), "this"))
    assert isinstance(ranks, Ranks)
    assert ranks.run_all([of]) == [{"error": "process 1 of 2 of the training died"}]
    again = ranks.run_all([of])[0]
    ranks.close()
    assert again["val_loss"] == whole["val_loss"]
    epochs = [line.split()[0] for line in Path("epochs.txt").read_text().splitlines()]
    assert epochs.count("0") == 1 and epochs[-1] == "2"  # (a quick epoch after another is not kept)


@pytest.mark.nightly
def test_they_die_with_their_driver_and_a_hanging_one_is_ended(tmp_path: Path) -> None:
    file = load_study(str(study_file(tmp_path, 2, more=",\n    timeout=6")))
    Path("stand still").touch()
    outcome = run(file, slot("baseline", file), tmp_path / "kept")
    assert outcome["error"].startswith("it took longer than Study(timeout=6) seconds")
    pid = int(Path("epochs.txt").read_text().split()[1])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("a process of the training lives on")


@pytest.mark.nightly
def test_a_search_by_two_processes(tmp_path: Path) -> None:
    assert command("launch", study_file(tmp_path, 2)).code == 0
    assert len(complete(trials())) > 8
    assert_refused(
        command("export", "-o", "net"), "takes 2 processes, and an export has one: give --no-weights"
    )
    assert command("export", "-o", "net", "--no-weights").code == 0
    recipe = write_study(tmp_path, setting("processes=2"), name="recipe")
    assert_refused(
        command("launch", recipe), "Study(processes=...) belongs to an own training loop: give train= too"
    )
    none = write_study(tmp_path, (BUDGET, f"{BUDGET},\n    processes=0"), name="none")
    assert_refused(command("launch", none), "Study(processes=0): must be a whole number of at least 1")
