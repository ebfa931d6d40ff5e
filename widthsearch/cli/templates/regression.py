"""How should my network share a quarter of its cost among its layers?

Put your own network into model() and your own data into data(): nothing else has to change.  As it stands,
a function of four numbers is learnt, and a search takes less than a minute.  With this file's name:

    widthsearch widths my_study.py    what would be searched and what it costs; nothing is trained
    widthsearch launch my_study.py    the search; Ctrl-C keeps everything, `widthsearch resume` goes on
"""

import torch
import torch.nn.functional as F
from torch import nn

from widthsearch import Budget, Recipe, Study


def model():
    """Make the network, at the widths that you would give it: any nn.Module, as it is.

    Every call makes a fresh one.  It is traced once, to see which widths belong together.
    """
    return nn.Sequential(
        nn.Linear(4, 64),
        nn.SiLU(),
        nn.Linear(64, 64),
        nn.SiLU(),
        nn.Linear(64, 64),
        nn.SiLU(),
        nn.Linear(64, 1),  # inputs and outputs keep their size
    )


def data():
    """Give (train, validation) or (train, validation, test).

    Each is a pair of tensors (x, y), or a dataset of such pairs; y has the shape of the network's output.
    Test data is read once, for the verdict.
    """
    random = torch.Generator().manual_seed(0)  # the same data each time: resume makes sure of that
    x = 2 * torch.rand(3000, 4, generator=random) - 1
    y = torch.sin(3 * x[:, 0] * x[:, 1]) + x[:, 2].abs() * torch.cos(4 * x[:, 3])
    y = y + 0.1 * torch.randn(3000, generator=random)
    return (x[:1000], y[:1000, None]), (x[1000:], y[1000:, None])


study = Study(
    model=model,
    data=data,
    # What the recommended network may cost: a share of the network above, or a number, e.g. macs="1.5M".
    budget=Budget(macs="0.25x", params="0.25x"),
    # How every network is trained, the uniform one too.  Any loss(output, target) -> scalar will do, and a
    # metric(output, target) is shown beside it.
    recipe=Recipe(epochs=10, batch_size=50, lr=0.01, optimizer="adamw", loss=F.mse_loss),
    # seeds=8, report_seeds=16,  more trainings, and a surer verdict
    # gpus=1,                    one GPU for each training
)
