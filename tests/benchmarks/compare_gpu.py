"""`widthsearch compare`, with all of its plain trainings made by fleets on one GPU, hundreds at a time.

    python tests/benchmarks/compare_gpu.py studies/mnist1d_conv.py --budgets 1/32,1/16 --repeats 3 --rounds 1 \\
        --arms 'grow-shrink,uniform,constant,cost-aware,one-shot,random*10,tpe*10,gp' --report-seeds 8 -o runs
    python tests/benchmarks/compare_gpu.py ... the same ... -o runs --into sqlite:///widthsearch.db

Several studies at once share the GPU.  Every search is a process that walks through its arm as the driver does
(asks of Optuna's samplers take seconds) and makes its own gated trainings on a CPU core; its plain trainings, and
those of the report, go to the study's fleet (fleet.py).  What ended is kept in ``runs/STUDY.jsonl``, from which the
same command goes on; ``--seconds`` stops it in time.  ``--into`` trains nothing: it writes what the files hold into a
database as the study that `compare` would have made, for ``widthsearch show`` and, where something is missing,
``widthsearch resume``.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, TextIO

import optuna
import torch
from fleet import Entry, Fleet, entry_of
from optuna.trial import TrialState
from trainings import load, parser_of

from widthsearch.cli.options import words_of
from widthsearch.database import records
from widthsearch.database.connection import Database
from widthsearch.database.ledger import attributes_of
from widthsearch.database.lock import driver_lock
from widthsearch.database.sampler import search_space
from widthsearch.driver.create import create
from widthsearch.driver.prepare import Prepared, prepare
from widthsearch.driver.questions import make_comparison
from widthsearch.plans.arm import Arm, ArmSearch, Point
from widthsearch.plans.arms import ARMS
from widthsearch.plans.comparison import Comparison, fresh_key, parse_arm
from widthsearch.plans.plan import Branch, Run, Slot
from widthsearch.study.data import load_data
from widthsearch.training.trial import TrialRunner

AT_ONCE = 64  # trainings of one list
STREAMS = 2  # lists of one study at a time
Outcome = dict[str, Any]
Wanted = tuple[int, Connection, Slot, Entry]
#: What is trained first: what a search waits for; then its end on fresh seeds and random networks; then its course.
FIRST, SECOND, LAST = range(3)
TEST = (records.TEST_LOSS, records.TEST_ACCURACY)  # of the trainings of the report alone


@dataclass(frozen=True)
class Ended:
    """A training that ended: its slot and its attributes, as in a worker's answer; the loss None if it failed."""

    slot: Slot
    outcome: Outcome

    def runs(self, retries: int) -> list[Run]:
        """As the driver would see it: one that fails is tried again, in vain since it has the same seed."""
        s, loss = self.slot, self.outcome["val_loss"]
        done = loss is not None
        ratios = self.outcome.get(records.PRUNE_RATIO)
        state: Literal["complete", "failed"] = "complete" if done else "failed"
        run = Run(s.key, state, s.widths, loss, ratios, branch=s.branch, asked=s.asked)
        return [run] * (1 if done else 1 + retries)

    def to_json(self) -> str:
        s = self.slot
        assert s.branch is not None
        return json.dumps(
            [s.kind, s.round, s.replica, dict(s.widths), s.step, list(s.branch), s.asked, self.outcome]
        )

    @classmethod
    def from_json(cls, line: str) -> Ended:
        *slot, branch, asked, outcome = json.loads(line)
        return cls(Slot(*slot, branch=Branch(*branch), asked=tuple(asked)), outcome)


class Work:
    """One study's comparison: its searches, its fleet, and the file of what has ended."""

    def __init__(self, reference: str, args: Any) -> None:
        found = load(reference, report_seeds=args.report_seeds, rounds=args.rounds)
        options = {"arms": args.arms, "budgets": args.budgets, "repeats": args.repeats}
        self.command = ["compare", *words_of(options)]
        data = load_data(found.study)  # once: it may take seconds
        self.study_file = replace(found, study=replace(found.study, data=lambda: data))
        self.study = self.study_file.study
        file, _, attribute = reference.partition(":")
        self.name = "-".join(filter(None, (Path(file).stem, attribute)))
        self.prepared: Prepared = prepare(self.study_file)
        self.comparison: Comparison = make_comparison(
            self.study,
            self.prepared.plan,
            arms=args.arms.split(","),
            shares=args.budgets.split(","),
            repeats=args.repeats,
        )
        on_cpu = replace(self.study, recipe=replace(self.study.recipe, device="cpu"))
        self.runner = TrialRunner(on_cpu, self.comparison)
        self.file = Path(args.out) / f"{self.name}.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.ended = [Ended.from_json(line) for line in lines]
        self.reported = {_fresh(e.slot) for e in self.ended if e.slot.kind == "report"}

    def searches(self) -> list[Branch]:
        """One for all arms that go by the same runs.  (``equal-ratio`` trains otherwise: `resume` makes it.)"""
        c = self.comparison
        return [
            Branch(budget, repeat, arm)
            for arm in dict.fromkeys(parse_arm(arm)[1] for arm in c.arms if arm != "equal-ratio")
            for repeat in range(c.repeats)
            for budget in range(len(c.budgets))
        ]

    def search(self, branch: Branch) -> list[tuple[Arm, ArmSearch]]:
        """The arms that go by a branch's runs, each with its view of them."""
        plan = self.comparison.plan_of(Slot("score", 0, 0, {}, branch=branch))
        limit = self.comparison.limit(branch.budget)
        arms = [parse_arm(arm) for arm in self.comparison.arms]
        return [
            (function, ArmSearch(branch, plan, times * limit))
            for function, of, times in arms
            if of == branch.arm
        ]

    def follow(self, branch: Branch, pipe: Connection) -> None:
        """A search from start to end, in a process of its own: as in `Comparison`, but it trains as it goes."""
        retries = self.comparison.plan.retries
        runs = [run for e in self.ended if e.slot.branch == branch for run in e.runs(retries)]
        points: list[list[Point]] = []
        for function, search in self.search(branch):
            pending, so_far = search.walk(function, runs)
            while pending is not None:
                found = self.train_all([slot for slot, s in zip(*pending, strict=True) if s == "open"], pipe)
                runs += [run for ended in found for run in ended.runs(retries)]
                pending, so_far = search.walk(function, runs)
            points.append(so_far)
        for priority, chosen in (
            (SECOND, [of[-1] for of in points if of]),
            (LAST, [p for of in points for p in of]),
        ):
            for slot in (s for point in chosen for s in self.comparison.report_slots(branch.budget, point)):
                pipe.send((priority, slot, self.entry(slot)))
        pipe.send(None)

    def train_all(self, slots: list[Slot], pipe: Connection) -> list[Ended]:
        """Gated trainings here, plain ones by the fleet."""
        plain = [slot for slot in slots if slot.kind != "measure"]
        for slot in plain:
            assert slot.branch is not None
            pipe.send((SECOND if slot.branch.arm == "random" else FIRST, slot, self.entry(slot)))
        measured = [Ended(slot, self.runner.run(slot)) for slot in slots if slot.kind == "measure"]
        for ended in measured:
            pipe.send(ended)
        return measured + [pipe.recv() for _ in plain]

    def entry(self, slot: Slot) -> Entry:
        plan = self.comparison.plan_of(slot)
        return entry_of(
            self.runner.space, {v: slot.widths[v] for v in plan.widths}, slot.random_seed(plan.seed)
        )

    def serve(self, pipes: list[Connection], device: torch.device, deadline: float) -> None:
        """Train what the searches ask for, several lists at a time."""
        fleet = Fleet(self.runner.space, self.study.recipe, self.study.data(), device)
        pending: list[Wanted] = []
        with ThreadPoolExecutor(STREAMS) as pool, self.file.open("a") as file:
            training: dict[Future[list[Ended]], list[Wanted]] = {}
            while (pipes or pending or training) and time.monotonic() < deadline:
                self.listen(pipes, pending, file)
                for future in [f for f in training if f.done()]:
                    found = future.result()
                    self.keep(found, file)
                    for (_, pipe, slot, _), ended in zip(training.pop(future), found, strict=True):
                        if slot.kind != "report":
                            pipe.send(ended)
                if pending and len(training) < STREAMS and not wait(pipes, 0.02):
                    pending.sort(key=lambda wanted: wanted[0])  # stable
                    now = [w for w in pending if w[0] == pending[0][0]][:AT_ONCE]
                    del pending[: len(now)]
                    training[pool.submit(self.trained, fleet, [w[2:] for w in now])] = now
        print(
            f"{self.name}: {len(self.ended)} trainings{', not done' if pipes or pending else ''}", flush=True
        )

    def listen(self, pipes: list[Connection], pending: list[Wanted], file: TextIO) -> None:
        """Take in what searches say, for a moment."""
        for pipe in wait(pipes, 0.01):
            assert isinstance(pipe, Connection)
            message = pipe.recv()
            if message is None:
                pipes.remove(pipe)
            elif isinstance(message, Ended):
                self.keep([message], file)
            else:
                priority, slot, entry = message
                if slot.kind != "report" or _fresh(slot) not in self.reported:
                    pending.append((priority, pipe, slot, entry))
                    self.reported.add(_fresh(slot))

    def trained(self, fleet: Fleet, wanted: Sequence[tuple[Slot, Entry]]) -> list[Ended]:
        start = time.perf_counter()
        test = any(slot.kind == "report" for slot, _ in wanted)
        outcomes = fleet.train([entry for _, entry in wanted], test=test)
        seconds = time.perf_counter() - start
        print(f"{self.name}: {len(wanted)} trained in {seconds:.2f} s, {len(self.ended)} before", flush=True)
        found = []
        for (slot, _), outcome in zip(wanted, outcomes, strict=True):
            cost = self.comparison.plan.cost.at(slot.widths)
            attributes = {k: v for k, v in outcome.items() if slot.kind == "report" or k not in TEST}
            samples = fleet.steps * min(self.study.recipe.batch_size, fleet.samples)
            attributes |= {**cost, records.TRAINING_MACS: round(3 * cost["macs"] * samples)}
            attributes |= {
                records.SECONDS: round(seconds / len(wanted), 3),
                records.HOST: f"fleet on {device_name(fleet)}",
            }
            found.append(Ended(slot, attributes))
        return found

    def keep(self, ended: Iterable[Ended], file: TextIO) -> None:
        for e in ended:
            file.write(e.to_json() + "\n")
            self.ended.append(e)
        file.flush()

    def into(self, url: str) -> None:
        """Write all that ended into a database, as the trials of a study."""
        database, name = Database.open(url, create=True, patient=True), f"{self.name}-compare"
        with driver_lock(url, name):
            study = create(
                database, name, self.study_file, self.prepared, plan=self.comparison, command=self.command
            )
            space, wanted = search_space(self.comparison.plan), self.of_random()
            for ended in self.ended:
                branch = ended.slot.branch
                if branch in wanted and ended.slot.round not in wanted[branch]:
                    continue  # of a random search that was to be a longer one
                for run in ended.runs(self.comparison.plan.retries):
                    study.add_trial(self.trial(ended, run, space))

    def of_random(self) -> dict[Branch | None, set[int]]:
        """The rounds of every random search: what it trains is known from the first, but for the run-off."""
        found: dict[Branch | None, set[int]] = {}
        for branch in self.searches():
            if branch.arm == "random":
                function, search = self.search(branch)[0]
                found[branch] = {
                    slot.round for slot in next(s for s in function(search) if isinstance(s, list))
                }
        return found

    def trial(self, ended: Ended, run: Run, space: dict[str, Any]) -> optuna.trial.FrozenTrial:
        slot = ended.slot
        attributes = attributes_of(slot, self.comparison)
        attributes |= {k: v for k, v in ended.outcome.items() if k != "val_loss"}
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if run.value is not None else TrialState.FAIL,
            value=run.value,
            params={v: int(w) for v, w in slot.widths.items()},
            distributions=space,
            user_attrs=attributes,
        )


def _fresh(slot: Slot) -> tuple[Any, ...]:
    assert slot.branch is not None
    return fresh_key(slot.branch.budget, slot.kind, slot.replica, slot.widths)


def device_name(fleet: Fleet) -> str:
    return torch.cuda.get_device_name(fleet.device) if fleet.device.type == "cuda" else "the CPU"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("more", nargs="*")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--budgets", default="1/32,1/16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rounds", type=int, default=1, help="of ours: that, and no more, is what a search may cost"
    )
    parser.add_argument("--report-seeds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--into")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True  # rounds less than the bfloat16 that a recipe has on GPUs
    Path(args.out).mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.seconds
    works = [Work(reference, args) for reference in (args.study, *args.more)]
    if args.into:
        for work in works:
            work.into(args.into)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Before anything touches the GPU: processes that are forked then share data and code, and are ready at once.
    fork, threads = mp.get_context("fork"), []
    pipes: dict[str, list[Connection]] = {}
    for work in works:
        for branch in work.searches():
            ours, theirs = fork.Pipe()
            fork.Process(target=work.follow, args=(branch, theirs), daemon=True).start()
            pipes.setdefault(work.name, []).append(ours)
    for work in works:
        arguments = (pipes.get(work.name, []), torch.device(args.device), deadline)
        threads.append(threading.Thread(target=work.serve, args=arguments))
        threads[-1].start()
    for thread in threads:
        thread.join()
    os._exit(0)  # searches that are still asking would be waited for


if __name__ == "__main__":
    main()
