"""Small networks of every kind that the width space must understand, with the variables they must have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(NamedTuple):
    factory: Callable[..., nn.Module]  # called with nothing; with the widths in order if takes_widths
    example: tuple[Tensor, ...]
    variables: tuple[str, ...]
    takes_widths: bool = False


def images(channels: int = 3, size: int = 16) -> tuple[Tensor]:
    return (torch.linspace(-1, 1, 2 * channels * size * size).reshape(2, channels, size, size).sin(),)


def vectors(*shape: int) -> tuple[Tensor]:
    return (torch.linspace(-3, 3, 2 * torch.Size(shape).numel()).reshape(2, *shape).sin(),)


def mlp(a: int = 16, b: int = 12) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, a),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(a, b),
        nn.LogSigmoid(),
        nn.RReLU(),
        nn.Linear(b, 5),
    )


class LeNet(nn.Module):
    """Flattens 4 x 4 = 16 positions per channel with ``view(x.size(0), -1)``."""

    def __init__(self, a: int = 6, b: int = 8, c: int = 20) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16 * b, c), nn.Linear(c, 10)

    def flatten(self, x: Tensor) -> Any:
        return x.view(x.size(0), -1)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.elu(self.conv2(x), inplace=True), 2)
        return self.fc2(torch.tanh(self.fc1(self.flatten(x))))


class LiteralView(LeNet):
    def flatten(self, x: Tensor) -> Any:
        return x.view(-1, 128)


def conv1d(a: int = 8, b: int = 10, c: int = 14) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(4, a, 5, padding=2),
        nn.BatchNorm1d(a),
        nn.PReLU(a),
        nn.MaxPool1d(2),
        nn.Conv1d(a, b, 3, padding=1, bias=False),
        nn.BatchNorm1d(b),
        nn.LeakyReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(2 * b, c),
        nn.BatchNorm1d(c),
        nn.ReLU(),
        nn.Linear(c, 5),
    )


def conv_bn(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU6(inplace=True))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample: nn.Module | None = None
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y)


class ResNet(nn.Module):
    """Basic blocks, initialised like torchvision's: fan-out normal, second BatchNorm of a block zero."""

    def __init__(self, stages: tuple[int, ...] = (8, 12, 16), blocks: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stages[0], 3, 1, 1, bias=False), nn.BatchNorm2d(stages[0])
        layers, i = [], stages[0]
        for s, o in enumerate(stages):
            first = BasicBlock(i, o, 1 if s == 0 else 2)
            layers.append(nn.Sequential(first, *(BasicBlock(o, o, 1) for _ in range(blocks - 1))))
            i = o
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(i, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int, expand: int) -> None:
        super().__init__()
        h = i * expand
        layers = [conv_bn(i, h, 1)] if expand > 1 else []
        self.body = nn.Sequential(
            *layers, conv_bn(h, h, 3, stride, h), nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o)
        )
        self.residual = stride == 1 and i == o

    def forward(self, x: Tensor) -> Any:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        InvertedResidual(8, 6, 1, 1),
        InvertedResidual(6, 10, 2, 4),
        InvertedResidual(10, 10, 1, 4),
        conv_bn(10, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(24, 7),
    )


class DenseLayer(nn.Module):
    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Any:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


def densenet() -> nn.Module:
    def transition(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, o, 1, bias=False), nn.AvgPool2d(2))

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        DenseLayer(8, 4),
        DenseLayer(12, 4),
        transition(16, 8),
        DenseLayer(8, 4),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class UNet(nn.Module):
    def __init__(self, a: int = 6, b: int = 10, c: int = 12, up: int = 8, d: int = 9, e: int = 7) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(3, a), conv_bn(a, b), conv_bn(b, c)
        self.up, self.up2 = nn.ConvTranspose2d(c, up, 2, 2), conv_bn(up + b, d)
        self.up1, self.out = conv_bn(d + a, e), nn.Conv2d(e, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up(self.middle(F.max_pool2d(b, 2)))
        y = self.up2(torch.cat([y, b], 1))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.up1(torch.cat([y, a], dim=1)))


class Shared(nn.Module):
    """One module called twice, so that its inputs and outputs are the same units."""

    def __init__(self, a: int = 12) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(10, a), nn.Linear(a, a), nn.Linear(a, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.silu(self.first(x))
        return self.last(F.silu(self.twice(F.silu(self.twice(x)))))


class Functional(nn.Module):
    """Weights without a module; one that multiplies channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.wide = nn.Parameter(torch.randn(14, 8) * 0.3)
        self.last = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(F.conv2d(x, self.weight)) * self.scale * 2.0 + torch.ones(1, device=x.device)
        return F.linear(F.linear(x.amax((2, 3)), self.wide).square(), self.last.weight, self.last.bias)


class Tokens(nn.Module):
    """Three-dimensional inputs, an embedding and a position table through Linear layers."""

    def __init__(self, d: int = 12, h: int = 20) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(11, d), nn.Parameter(torch.randn(1, 6, d) * 0.02)
        self.fc1, self.fc2, self.head = nn.Linear(d, h), nn.Linear(h, d), nn.Linear(d, 11)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens) + self.position
        return self.head((x + self.fc2(F.mish(self.fc1(x)))).mean(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = conv_bn(3, 12), nn.Conv2d(12, 5, 1), nn.Conv2d(5, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        x = x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(torch.flatten(x.mean(-1).mean(-1, keepdim=True), 1))


def depthwise_multiplier(a: int = 6, b: int = 9) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, a, 3),
        nn.Hardswish(),
        nn.Conv2d(a, 2 * a, 3, padding=1, groups=a),
        nn.BatchNorm2d(2 * a, affine=False, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(2 * a, b, 1),
        nn.Dropout2d(0.1),
        nn.Upsample(scale_factor=2),
        nn.ReflectionPad2d(1),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * b, 5),
    )


class MaskedWeight(nn.Module):
    """The consumer is a multiple of a parameter; the producer is tied to a consumer (an autoencoder)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(10, 9), nn.Parameter(torch.randn(7, 9))
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(7, 9))

    def forward(self, x: Tensor) -> Any:
        hidden = F.linear(F.relu(self.first(x)), self.mask * self.weight * 0.5)
        return F.linear(F.linear(F.relu(hidden), self.weight.t() / 2), self.first.weight.t())


class TwoInputs(nn.Module):
    """A dictionary comes back; the forward pass reads a value, so that it cannot run without data."""

    def __init__(self, a: int = 9, b: int = 7) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, a), nn.Linear(6, b), nn.Linear(a + b, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([F.relu(self.left(x)), F.softplus(self.right(y))], dim=-1)
        return {"logits": self.head(joined if float(x.sum()) < 1e9 else -joined)}


class Between(nn.Module):
    """conv -> something -> conv -> linear."""

    def __init__(self, something: object, channels: int = 8, **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 6, 1)
        self.head = nn.Linear(6, 4)
        self.something = something
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        x = self.last(self.something(self.first(x)))  # type: ignore[operator]
        return self.head(x.mean((2, 3)))


class LastDim(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Any:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Filter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.arange(8.0).reshape(8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return x + self.table


NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp, vectors(10), ("0", "3"), takes_widths=True),
    "lenet": Network(LeNet, images(1), ("conv1", "conv2", "fc1"), takes_widths=True),
    "conv1d": Network(conv1d, vectors(4, 16), ("0", "4", "9"), takes_widths=True),
    "resnet": Network(
        ResNet,
        images(),
        (
            "conv1",
            "layers.0.0.conv1",
            "layers.0.1.conv1",
            "layers.1.0.conv1",
            "layers.1.0.conv2",
            "layers.1.1.conv1",
            "layers.2.0.conv1",
            "layers.2.0.conv2",
            "layers.2.1.conv1",
        ),
    ),
    "mobilenet_v2": Network(
        mobilenet_v2, images(), ("0.0", "1.body.1", "2.body.0.0", "2.body.2", "3.body.0.0", "4.0")
    ),
    "densenet": Network(
        densenet, images(), ("0", "1.conv1", "1.conv2", "2.conv1", "2.conv2", "3.2", "4.conv1", "4.conv2")
    ),
    "unet": Network(
        UNet, images(), ("down1.0", "down2.0", "middle.0", "up", "up2.0", "up1.0"), takes_widths=True
    ),
    "shared": Network(Shared, vectors(10), ("first",), takes_widths=True),
    "functional": Network(Functional, images(), ("weight", "wide")),
    "tokens": Network(Tokens, (torch.arange(12).reshape(2, 6) % 11,), ("embed", "fc1"), takes_widths=True),
    "squeeze_excite": Network(SqueezeExcite, images(), ("conv.0", "fc1")),
    "depthwise_multiplier": Network(depthwise_multiplier, images(), ("0", "5"), takes_widths=True),
    "two_inputs": Network(TwoInputs, (*vectors(4), *vectors(6)), ("left", "right"), takes_widths=True),
    "masked_weight": Network(MaskedWeight, vectors(10), ("first", "weight")),
    "instance_norm": Network(
        lambda a=8: nn.Sequential(
            nn.Conv2d(3, a, 3),
            nn.InstanceNorm2d(a),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * a, 5),
        ),
        images(),
        ("0",),
        takes_widths=True,
    ),
}


def randomise(model: nn.Module) -> nn.Module:
    """Statistics, scales and biases that differ from unit to unit, so that a wrong index shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1 and not name.endswith(("_u", "_v")):
                positive = "var" in name or "weight" in name
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if positive else -0.3))
    return model


def outputs(model: nn.Module, example: tuple[Any, ...]) -> Tensor:
    result = model(*example)
    tensor: Tensor = result["logits"] if isinstance(result, dict) else result
    return tensor


class Run(nn.Module):
    """A forward pass given as a function of the module and its input; what is no module is an attribute."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)
