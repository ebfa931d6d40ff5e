"""How should a small language model share half of its cost among its layers?

Put your own network into model() and your own text into data(): nothing else has to change.  As it stands,
numbers in words are spelled, and a search takes a minute or two.  With this file's name:

    widthsearch widths my_study.py    what would be searched and what it costs; nothing is trained
    widthsearch launch my_study.py    the search; Ctrl-C keeps everything, `widthsearch resume` goes on
"""

import torch
from torch import nn

from widthsearch import Budget, Recipe, Study

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
LETTERS = " " + "".join(sorted(set("".join(WORDS))))  # a token is the place of a letter in here
LENGTH = 16


class Transformer(nn.Module):
    """A decoder: searched are the width of its residual stream, its heads and its MLPs."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(len(LETTERS), 32), nn.Embedding(LENGTH, 32)
        layers = (nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(32, len(LETTERS))

    def forward(self, tokens):
        """Token numbers (N, T) -> logits (N, LETTERS, T)."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.place(torch.arange(length, device=tokens.device))
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=causal)
        return self.head(x).transpose(1, 2)  # cross-entropy wants the classes second


def model():
    """Make the network, at the widths that you would give it: any nn.Module, as it is.

    Every call makes a fresh one.  It is traced once, to see which widths belong together.
    """
    return Transformer()


def data():
    """Give (train, validation) or (train, validation, test).

    Each is a pair of tensors (x, y), or a dataset of such pairs: x the tokens, y what follows on each.  A y
    of -100 is left out.  Test data is read once, for the verdict.
    """
    random = torch.Generator().manual_seed(0)  # the same data each time: resume makes sure of that
    text = " ".join(WORDS[i] for i in torch.randint(len(WORDS), (5000,), generator=random))
    tokens = torch.tensor([LETTERS.index(letter) for letter in text])
    starts = LENGTH * torch.arange(1200)
    x, y = (torch.stack([tokens[i : i + LENGTH] for i in starts + shift]) for shift in (0, 1))
    return (x[:800], y[:800]), (x[800:], y[800:])


study = Study(
    model=model,
    data=data,
    # What the recommended network may cost: a share of the network above, or a number, e.g. macs="1.5M".
    budget=Budget(macs="0.5x", params="0.5x"),
    # How every network is trained, the uniform one too; cross-entropy, unless you give loss=...
    recipe=Recipe(epochs=5, batch_size=40, lr=0.005, optimizer="adamw"),
    # keep_heads=True,           search the size of the heads in the place of their number
    # seeds=8, report_seeds=16,  more trainings, and a surer verdict
    # gpus=1,                    one GPU for each training
)
