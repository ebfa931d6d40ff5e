"""How should my network share an eighth of its cost among its layers?

Put your own network into model() and your own data into data(): nothing else has to change.  As it stands,
three arms of a spiral are told apart, and a search takes less than a minute.  With this file's name:

    widthsearch widths my_study.py    what would be searched and what it costs; nothing is trained
    widthsearch launch my_study.py    the search; Ctrl-C keeps everything, `widthsearch resume` goes on
"""

import torch
from torch import nn

from widthsearch import Budget, Recipe, Study


def model():
    """Make the network, at the widths that you would give it: any nn.Module, as it is.

    Every call makes a fresh one.  It is traced once, to see which widths belong together.
    """
    return nn.Sequential(
        nn.Linear(2, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 3),  # inputs and outputs keep their size
    )


def data():
    """Give (train, validation) or (train, validation, test).

    Each is a pair of tensors (x, y), or a dataset of such pairs.  y holds classes: whole numbers from 0 on.
    Test data is read once, for the verdict.
    """
    random = torch.Generator().manual_seed(0)  # the same data each time: resume makes sure of that
    arm = torch.randint(3, (3000,), generator=random)
    along = torch.rand(3000, generator=random)
    angle = 2 * torch.pi * (arm / 3 + along) + 0.25 * torch.randn(3000, generator=random)
    x = (0.1 + along).unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return (x[:1000], arm[:1000]), (x[1000:], arm[1000:])


study = Study(
    model=model,
    data=data,
    # What the recommended network may cost: a share of the network above, or a number, e.g. macs="1.5M".
    budget=Budget(macs="1/8x", params="1/8x"),
    # How every network is trained, the uniform one too; cross-entropy, unless you give loss=...
    recipe=Recipe(epochs=10, batch_size=50, lr=0.01, optimizer="adamw"),
    # seeds=8, report_seeds=16,  more trainings, and a surer verdict
    # gpus=1,                    one GPU for each training
)
