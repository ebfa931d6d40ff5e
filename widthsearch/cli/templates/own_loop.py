"""How should my network, trained by a loop of my own, share an eighth of its cost among its layers?

Put your own network into model(), your data into data() and your loop into train(): nothing else has to
change.  As it stands, three arms of a spiral are told apart.  With this file's name:

    widthsearch widths my_study.py    what would be searched and what it costs; nothing is trained
    widthsearch launch my_study.py    the search; Ctrl-C keeps everything, `widthsearch resume` goes on
"""

import torch
import torch.nn.functional as F
from torch import nn

from widthsearch import Budget, Study

EPOCHS, BATCH = 10, 50


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
    """Give (train, validation) or (train, validation, test), in whatever form your loop reads.

    Test data is read once, by evaluate(), for the verdict.
    """
    random = torch.Generator().manual_seed(0)  # the same data each time: resume makes sure of that
    arm = torch.randint(3, (3000,), generator=random)
    along = torch.rand(3000, generator=random)
    angle = 2 * torch.pi * (arm / 3 + along) + 0.25 * torch.randn(3000, generator=random)
    x = (0.1 + along).unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return (x[:1000], arm[:1000]), (x[1000:], arm[1000:])


def train(net, splits, report):
    """Train this network, at whatever widths it comes, and report how good it is.  The last report counts.

    Gates, where there are any, are hooks on the network: each backward pass trains them too.
    """
    (x, y), validation = splits
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    done = report.restore(optimiser=optimiser)  # an interrupted training goes on after so many epochs
    for epoch in range(done, EPOCHS):
        net.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
        loss, accuracy = evaluate(net, validation)
        report(val_loss=loss, val_accuracy=accuracy)
        report.checkpoint(epoch + 1)


def evaluate(net, split):
    """Loss and accuracy on a split: also called by the search, where there is test data."""
    x, y = split
    net.eval()
    with torch.no_grad():
        output = net(x)
    return float(F.cross_entropy(output, y)), float((output.argmax(1) == y).double().mean())


study = Study(
    model=model,
    data=data,
    # What the recommended network may cost: a share of the network above, or a number, e.g. macs="1.5M".
    budget=Budget(macs="1/8x", params="1/8x"),
    train=train,
    steps=EPOCHS * 1000 // BATCH,  # the backward passes that train() makes: the gates are done when it is
    evaluate=evaluate,
    # seeds=8, report_seeds=16,  more trainings, and a surer verdict
    # gpus=1,                    one GPU for each training
)
