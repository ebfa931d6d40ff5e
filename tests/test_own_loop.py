"""Own training loops: gates are trained by a loop that does not know of them, whoever wrote it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from public import load
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from widthsearch import Budget, Recipe, Study, UsageError
from widthsearch.driver.prepare import prepare
from widthsearch.errors import TrainingError
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.space import trace
from widthsearch.study.file import StudyFile
from widthsearch.training.controller import BudgetController
from widthsearch.training.gates import Gates, open_probability
from widthsearch.training.own_loop import OwnLoop
from widthsearch.training.recipe_loop import evaluate, train
from widthsearch.training.trial import TrialRunner

EPOCHS, BATCH = 6, 32


def blobs(n: int = 256) -> tuple[Tensor, Tensor]:
    """Four classes in six dimensions, learnable in a few steps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4
    centres = 2 * torch.randn(4, 6, generator=generator)
    return centres[y] + torch.randn(n, 6, generator=generator), y


DATA = (blobs(), blobs(64))
STEPS = EPOCHS * len(DATA[0][1]) // BATCH


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def plain_loop(model: nn.Module, data: Any, report: Any, *, accumulate: int = 1, amp: bool = False) -> None:
    """The loop of every tutorial."""
    (x, y), validation = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(EPOCHS):
        for i, (xb, yb) in enumerate(DataLoader(TensorDataset(x, y), BATCH, shuffle=True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(model(xb), yb) / accumulate
            loss.backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            output = model(validation[0])
        report(
            val_loss=F.cross_entropy(output, validation[1]),
            val_accuracy=(output.argmax(1) == validation[1]).float().mean(),
        )
        model.train()


def accumulating_loop(model: nn.Module, data: Any, report: Any) -> None:
    plain_loop(model, data, report, accumulate=2)


def mixed_precision_loop(model: nn.Module, data: Any, report: Any) -> None:
    plain_loop(model, data, report, amp=True)


def compiling_loop(model: nn.Module, data: Any, report: Any) -> None:
    plain_loop(torch.compile(model, backend="eager"), data, report)  # type: ignore[arg-type]


def lightning_loop(model: nn.Module, data: Any, report: Any) -> None:
    lightning = load("lightning")
    torch_validation = TensorDataset(*data[1])

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            assert not model.training
            self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", **quiet)
    trainer.fit(
        Classifier(),
        DataLoader(TensorDataset(*data[0]), BATCH, shuffle=True),
        DataLoader(torch_validation, len(torch_validation)),
    )
    report(val_loss=trainer.callback_metrics["val_loss"])


class WithLoss(nn.Module):
    """What the Hugging Face Trainer wants: named inputs, a dict with the loss."""

    def __init__(self, make: Callable[[], nn.Module] = mlp) -> None:
        super().__init__()
        self.net = make()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": F.cross_entropy(logits, labels), "logits": logits}
        )


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "labels": self.y[i]}


def trainer_loop(model: nn.Module, data: Any, report: Any) -> None:
    transformers = load("transformers")
    arguments = transformers.TrainingArguments(
        output_dir="unused",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=0.01,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Rows(*data[0]), eval_dataset=Rows(*data[1])
    )
    trainer.train()
    report(val_loss=trainer.evaluate()["eval_loss"])


LOOPS: dict[str, tuple[Callable[..., None], Callable[[], nn.Module], Any]] = {
    "plain": (plain_loop, mlp, DATA[0][0][:2]),
    "gradient accumulation": (accumulating_loop, mlp, DATA[0][0][:2]),
    "bfloat16 autocast": (mixed_precision_loop, mlp, DATA[0][0][:2]),
    "torch.compile": (compiling_loop, mlp, DATA[0][0][:2]),
    "lightning": (lightning_loop, mlp, DATA[0][0][:2]),
    "hugging face trainer": (
        trainer_loop,
        WithLoss,
        {"x": DATA[0][0][:2], "labels": DATA[0][1][:2]},
    ),
}


def study_of(train: Any, model: Any = mlp, example: Any = None, **settings: Any) -> Study:
    settings = {"steps": STEPS, "budget": Budget(macs="0.3x", params="any")} | settings
    return Study(model=model, data=lambda: DATA, train=train, example=example, **settings)


@pytest.mark.parametrize(("loop", "model", "example"), LOOPS.values(), ids=LOOPS.keys())
def test_a_loop_trains_the_gates_without_knowing_of_them(
    loop: Callable[..., None], model: Callable[[], nn.Module], example: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = model()
    space = trace(net, example)
    budget = {"macs": 0.3 * space.cost(space.widths)["macs"]}
    steps = STEPS // 2 if loop is accumulating_loop else STEPS  # of the optimizer
    own = OwnLoop(study_of(loop, model, example, steps=steps), DATA)
    gates = Gates(space)
    controller = BudgetController(gates.log_alpha, space.widths, space.cost, budget, steps=steps)
    with gates.attached(controller.step):
        assert own.fit(net, seed=1) == STEPS * BATCH
        own.check_steps(controller.taken)
    assert controller.taken == steps
    units = [
        p.sum()
        for p in np.split(open_probability(gates.log_alpha), np.cumsum(list(space.widths.values()))[:-1])
    ]
    cost = space.cost(dict(zip(space.widths, units, strict=True)))["macs"]
    assert cost < 0.75 * space.cost(space.widths)["macs"]  # the gates have learnt to close
    assert own.evaluate(net, "validation").loss < 1.0  # and the weights their task: chance is 1.39
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_an_own_loop_gives_the_same_study_as_the_recipe_it_repeats() -> None:
    """An own loop that does what the recipe does gets the same loss."""
    recipe = Recipe(epochs=3, batch_size=BATCH, lr=0.05, schedule="constant", momentum=0.0)

    def same(model: nn.Module, data: Any, report: Any) -> None:
        train(model, data[0], recipe, seed=torch.initial_seed())
        found = evaluate(model, data[1], recipe)
        report(val_loss=found.loss, val_accuracy=found.accuracy)

    steps = 3 * (len(DATA[0][1]) // BATCH)
    by_recipe = Study(model=mlp, data=lambda: DATA, budget=Budget(macs="0.3x", params="any"), recipe=recipe)
    by_loop = study_of(same, steps=steps, evaluate=lambda model, split: evaluate(model, split, recipe).loss)
    outcomes = []
    for study in (by_recipe, by_loop):
        plan = prepare(StudyFile(study, Path(__file__), "study")).plan
        outcomes.append(TrialRunner(study, SearchPlan(plan)).run(Slot("baseline", 0, 0, plan.baseline)))
    a, b = outcomes
    for key in ("val_loss", "macs", "params", "training_macs"):
        assert a[key] == b[key], key


class Broken:
    """Loops that gates cannot work with."""

    @staticmethod
    def copies(model: nn.Module, data: Any, report: Any) -> None:
        copy.deepcopy(model)(data[0][0])

    @staticmethod
    def runs_a_part(model: Any, data: Any, report: Any) -> None:
        model[3](model[1](model[0](data[0][0])))

    @staticmethod
    def never_runs(model: nn.Module, data: Any, report: Any) -> None:
        report(val_loss=1.0)

    @staticmethod
    def checkpoints(model: nn.Module, data: Any, report: Any) -> None:
        model(data[0][0]).sum().backward()


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (Broken.copies, "a copy of the gated network"),
        (Broken.runs_a_part, "outside of the network's own forward"),
        (Broken.never_runs, "never ran the network"),
    ],
)
def test_what_gates_cannot_follow_is_refused(loop: Any, message: str) -> None:
    net = mlp()
    gates = Gates(trace(net, DATA[0][0][:2]))
    with gates.attached(lambda gradient: None), pytest.raises(TrainingError, match=message):
        OwnLoop(study_of(loop), DATA).fit(net, seed=0)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        from torch.utils.checkpoint import checkpoint

        return self.last(checkpoint(self.block, self.first(x).relu(), use_reentrant=False).relu())


def test_activation_checkpointing_is_refused() -> None:
    """It runs layers again in the backward pass, when the gated weights are gone."""
    net = Checkpointed()
    gates = Gates(trace(net, DATA[0][0][:2]))
    message = "outside of the network's own forward"
    with gates.attached(lambda gradient: None), pytest.raises(TrainingError, match=message):
        OwnLoop(study_of(Broken.checkpoints), DATA).fit(net, seed=0)


def test_another_number_of_steps_is_refused() -> None:
    own = OwnLoop(study_of(plain_loop, steps=1000), DATA)
    own.check_steps(950)
    with pytest.raises(
        TrainingError, match="made 48 optimizer steps, but the study says 1000: give steps=48"
    ):
        own.check_steps(48)


def test_nothing_reported_is_refused() -> None:
    own = OwnLoop(study_of(lambda model, data, report: model(data[0][0]).sum().backward()), DATA)
    own.fit(mlp(), seed=0)
    with pytest.raises(TrainingError, match="reported nothing"):
        own.evaluate(mlp(), "validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": plain_loop}, r"steps=None"),
        ({"train": plain_loop, "steps": True}, r"steps=True"),
        ({"train": "loop", "steps": 3}, "train='loop'"),
        ({"steps": 3}, "steps=.*train="),
        ({"evaluate": len}, "evaluate=.*train="),
        ({"train": plain_loop, "steps": 3, "recipe": Recipe(epochs=3)}, "recipe"),
    ],
)
def test_settings_of_own_loops_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Study(model=mlp, data=lambda: DATA, budget=Budget(macs="0.3x", params="any"), **settings)


def test_a_test_split_needs_evaluate() -> None:
    study = Study(
        model=mlp,
        data=lambda: (*DATA, DATA[1]),
        budget=Budget(macs="0.3x", params="any"),
        train=plain_loop,
        steps=STEPS,
    )
    with pytest.raises(UsageError, match="evaluate"):
        prepare(StudyFile(study, Path(__file__), "study"))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.dense, self.out = nn.Embedding(11, 8), nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, word: Tensor, x: Tensor, mask: Tensor | None = None) -> Any:
        h = torch.relu(self.embed(word) + self.dense(x))
        return self.out(h if mask is None else h * mask)[:, 0]


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_inputs_a_regression_loss_and_a_metric(kind: str) -> None:
    """A recipe on a data set of inputs in a tuple or a dict, mean squared error, a metric by function."""

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, i: int) -> Any:
            word, x = torch.tensor(i % 11), torch.sin(torch.arange(6.0) + i)
            inputs = (word, x) if kind == "tuple" else {"x": x, "word": word, "mask": torch.ones(1)}
            return inputs, x.sum() + 0.1 * word

    def error(output: Tensor, target: Tensor) -> float:
        return float((output - target).abs().mean())

    study = Study(
        model=TwoInputs,
        data=lambda: (Pairs(), Pairs()),
        budget=Budget(macs="0.5x", params="any"),
        recipe=Recipe(epochs=4, batch_size=16, lr=0.05, loss=F.mse_loss, metric=error),
    )
    plan = prepare(StudyFile(study, Path(__file__), "study")).plan
    assert list(plan.widths.values()) == [8]
    runner = TrialRunner(study, SearchPlan(plan))
    outcome = runner.run(Slot("baseline", 0, 0, plan.baseline))
    assert 0 < outcome["val_loss"] < 3
    # The mean of |e| squared is below the mean of e squared.
    assert 0 < outcome["accuracy"] ** 2 <= outcome["val_loss"]
    measure = runner.run(Slot("measure", 0, 0, plan.over_wide(plan.widths)))
    assert 0 < measure["prune_ratio"]["embed"] < 1
