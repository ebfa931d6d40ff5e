"""Batches: the same whoever loads them, from datasets and streams, and data that is read only once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import clean_process
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from widthsearch import Budget, Recipe, Study
from widthsearch.driver.prepare import prepare
from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import StudyFile
from widthsearch.study.fingerprint import changed_fields
from widthsearch.study.study import settings_of
from widthsearch.training.batches import batches
from widthsearch.training.recipe_loop import evaluate, train
from widthsearch.training.trial import TrialRunner

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


def drawn() -> Tensor:
    """Of all three kinds of global random numbers."""
    return torch.rand(()) + np.random.rand() + random.random()


class Noisy(Dataset[Any]):
    def __init__(self, size: int = 44, broken: int = -1) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Any:
        if i == self.broken:
            raise ValueError(f"sample {i} is broken")
        return torch.sin(torch.arange(6.0) * i) + drawn(), i % 4


class Stream(IterableDataset[Any]):
    """In another order each time, by the global random numbers."""

    def __init__(self, size: int = 44) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(self.size).tolist():
            yield torch.sin(torch.arange(6.0) * i), torch.tensor(i % 4)


def scaled(samples: list[Any]) -> Any:
    """A collate_fn that is random, too."""
    x, y = default_collate(samples)
    return x * drawn(), y


def two_epochs(split: Any, recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """Other global random numbers each time, and those after it as they were before."""
    order = torch.Generator().manual_seed(7)
    before = torch.get_rng_state()
    found = [tuple(batch) for _ in range(2) for batch in batches(split, recipe, order)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    return [*found, (order.get_state(), order.get_state())]


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(
        torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True)
    )


def test_batches_of_a_dataset_are_those_of_torchs_loader() -> None:
    """To the last bit, with the random numbers that follow: studies that had no loaders are what they were."""
    rows = TensorDataset(torch.arange(22.0)[:, None], torch.arange(22))
    order = torch.Generator().manual_seed(7)
    found = two_epochs(rows, RECIPE)
    reference = [
        tuple(batch)
        for _ in range(2)
        for batch in DataLoader(rows, batch_size=8, shuffle=True, drop_last=True, generator=order)
    ]
    assert same(found, [*reference, (order.get_state(), order.get_state())])
    for split in (rows, torch.utils.data.Subset(rows, range(5))):
        torch.manual_seed(0)
        all_ = [tuple(b) for b in batches(split, RECIPE, size=16)]
        after = torch.rand(3)
        torch.manual_seed(0)
        assert same(all_, [tuple(b) for b in DataLoader(split, batch_size=16)])
        assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("split", [Noisy(), Stream()], ids=["dataset", "stream"])
def test_whoever_loads_them_batches_are_the_same(split: Any) -> None:
    recipe = replace(RECIPE, steps_per_epoch=5 if isinstance(split, Stream) else None, collate_fn=scaled)
    found = {workers: two_epochs(split, replace(recipe, num_workers=workers)) for workers in (0, 1, 2)}
    assert len(found[0]) == 2 * 5 + 1
    assert same(found[0], found[1]) and same(found[0], found[2])
    first, second = found[0][:5], found[0][5:10]
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    whole = [[tuple(b) for b in batches(split, replace(recipe, num_workers=n), size=16)] for n in (0, 2, 0)]
    assert same(whole[0], whole[1]) and same(whole[0], whole[2])
    assert sum(len(y) for _, y in whole[0]) == 44


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_sample_raises_is_said(workers: int) -> None:
    with pytest.raises((ValueError, TrainingError), match="sample 30 is broken"):
        list(batches(Noisy(broken=30), replace(RECIPE, num_workers=workers)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_ends_early_is_said(workers: int) -> None:
    recipe = replace(RECIPE, steps_per_epoch=6, num_workers=workers)
    with pytest.raises(TrainingError, match="ended after 5 whole batches of 8.*give steps_per_epoch=5"):
        train(nn.Linear(6, 4), Stream(), recipe, seed=0)


def outcome(study: Study) -> dict[str, Any]:
    with clean_process():
        plan = prepare(StudyFile(study, Path(__file__), "study")).plan
        found = TrialRunner(study, SearchPlan(plan)).run(Slot("baseline", 0, 0, plan.baseline))
    return {k: v for k, v in found.items() if k not in ("seconds", "host")}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 4))


def test_a_study_of_streams() -> None:
    study = Study(
        model=mlp,
        data=lambda: (Stream(), Stream(20)),
        budget=Budget(macs="0.5x", params="any"),
        recipe=replace(RECIPE, steps_per_epoch=4),
    )
    found = outcome(study)
    assert found["training_macs"] == 3 * found["macs"] * 2 * 4 * 8  # two epochs of four batches of eight
    assert outcome(replace(study, recipe=replace(study.recipe, num_workers=2))) == found


def test_resume_compares_all_of_a_recipe_that_results_depend_on() -> None:
    def said(**changes: Any) -> dict[str, str]:
        recipe = replace(RECIPE, schedule="cosine", **changes)
        return settings_of(Study(model=mlp, data=lambda: (), budget=Budget(macs="0.5x"), recipe=recipe))

    assert said(num_workers=2, pin_memory=True) == said()
    for name, value in {
        "warmup": 0.1,
        "clip_grad_norm": 1.0,
        "ema": 0.9,
        "steps_per_epoch": 3,
        "collate_fn": boxes,
    }.items():
        assert changed_fields(said(), said(**{name: value}))[0].startswith(f"recipe.{name}: ")


class Boxes(Dataset[Any]):
    """Samples that only a collate_fn makes pairs of, with targets in a dict."""

    def __len__(self) -> int:
        return 44

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": torch.sin(torch.arange(6.0) * i), "label": i % 4, "size": i / 44}


def boxes(samples: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = default_collate(samples)
    return batch.pop("image"), batch


def weighted(output: Tensor, target: dict[str, Tensor]) -> Tensor:
    return (F.cross_entropy(output, target["label"], reduction="none") * target["size"]).mean()


def test_targets_in_a_dict_and_a_collate_fn() -> None:
    study = Study(
        model=mlp,
        data=lambda: (Boxes(), Boxes()),
        budget=Budget(macs="0.5x", params="any"),
        recipe=replace(RECIPE, collate_fn=boxes, loss=weighted),
    )
    assert 0 < outcome(study)["val_loss"] < 2


def test_an_evaluation_takes_no_more_than_eight_training_batches_at_once() -> None:
    sizes: list[int] = []
    net = nn.Linear(6, 4)
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for batch_size in (4, 400):
        evaluate(
            net, (torch.zeros(3000, 6), torch.zeros(3000, dtype=torch.long)), Recipe(batch_size=batch_size)
        )
    assert max(sizes[:-3]) == 32 and sizes[-3:] == [1024, 1024, 952]


def anonymous_memory() -> int:
    """Bytes of this process that no other can share: neither a file's pages nor code."""
    (line,) = [
        s for s in Path("/proc/self/smaps_rollup").read_text().splitlines() if s.startswith("Anonymous")
    ]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says whose a page is")
def test_tensors_of_a_mapped_file_are_nobodys_own(tmp_path: Path) -> None:
    """So all trainings of a host have one copy of them, as docs/study-files.md says."""
    rows, width = 100_000, 96
    size = rows * width * 4
    torch.save({"x": torch.randn(rows, width), "y": torch.arange(rows) % 4}, tmp_path / "data.pt")

    def data() -> Any:
        of = torch.load(tmp_path / "data.pt", mmap=True)
        return (of["x"], of["y"]), (of["x"][:1000], of["y"][:1000])

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 4))

    recipe = Recipe(epochs=1, batch_size=1000, lr=0.05)
    study = Study(model=model, data=data, budget=Budget(macs="0.5x", params="any"), recipe=recipe)
    outcome(
        replace(study, data=lambda: tuple((x[:9000], y[:9000]) for x, y in data()))
    )  # what torch needs itself
    kept: list[int] = []
    with clean_process():
        before = anonymous_memory()
        plan = prepare(StudyFile(study, Path(__file__), "study")).plan
        runner = TrialRunner(study, SearchPlan(plan))
        runner.run(
            Slot("baseline", 0, 0, plan.baseline), lambda net: kept.append(anonymous_memory() - before)
        )
    assert kept[0] < size / 3, f"{kept[0]} bytes of {size}"


# ---------------------------------------------------------------- tensors in memory, several of them


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.last = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        h = (self.words(ids) * mask[..., None]).sum(1)
        return {"class": self.last(self.hidden(h).relu())}


def several(size: int = 40, *, rows: int | None = None) -> Any:
    order = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (size, 5), generator=order)
    mask = (ids > 2).float()[:rows]
    return {"ids": ids, "mask": mask}, {"class": ids[:, 0] % 3}


def loss_of_class(output: Any, target: Any) -> Tensor:
    return F.cross_entropy(output["class"], target["class"])


def words(split: Any) -> Study:
    return Study(
        model=Words,
        data=lambda: (split, several(24)),
        budget=Budget(macs="0.5x"),
        recipe=replace(RECIPE, loss=loss_of_class),
    )


def test_inputs_and_targets_in_memory_may_be_tuples_and_dicts() -> None:
    x, y = several()
    as_samples = [({k: t[i] for k, t in x.items()}, {"class": y["class"][i]}) for i in range(40)]

    class Listed(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> Any:
            return as_samples[i]

    found = []
    for split in ((x, y), Listed()):
        study = words(split)
        prepared = prepare(StudyFile(study, Path(__file__), "study"))
        slot = Slot("baseline", 0, 0, prepared.plan.baseline)
        found.append(TrialRunner(study, SearchPlan(prepared.plan)).run(slot)["val_loss"])
        shape = "40x5 and 40x5 and 40 " if split == (x, y) else "Listed of 40 "
        assert prepared.fingerprint["data.train"].startswith(shape)
    assert found[0] == found[1]


def test_a_pair_in_memory_may_be_a_list() -> None:
    x, y = several()[0]["ids"].float(), several()[1]["class"]
    found = []
    for pair in ((x, y), [x, y]):
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        study = Study(
            model=lambda net=net: net,
            data=lambda pair=pair: (pair, pair),  # type: ignore[misc]
            budget=Budget(macs="0.5x"),
            recipe=RECIPE,
        )
        prepared = prepare(StudyFile(study, Path(__file__), "study"))
        slot = Slot("baseline", 0, 0, prepared.plan.baseline)
        found.append(TrialRunner(study, SearchPlan(prepared.plan)).run(slot)["val_loss"])
    assert found[0] == found[1]


def test_a_change_of_any_tensor_in_memory_is_seen() -> None:
    before, after = several(), several()
    after[0]["mask"][17, 3] += 1.0
    prints = [
        prepare(StudyFile(words(split), Path(__file__), "study")).fingerprint for split in (before, after)
    ]
    (changed,) = changed_fields(*prints)
    assert changed.startswith("data.train: 40x5 and 40x5 and 40 ")


def test_tensors_in_memory_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="of train must have as many samples each, but have 40, 39 and 40$"):
        prepare(StudyFile(words(several(rows=39)), Path(__file__), "study"))
    with pytest.raises(
        UsageError, match=r"tuple of 2 \(dict, list\), but must be a pair of tensors \(x, y\)"
    ):
        prepare(StudyFile(words((several()[0], [1, 2])), Path(__file__), "study"))
