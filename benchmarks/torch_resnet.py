"""The other side of the comparison: ResNet-20 and its train step as one writes them in PyTorch.

Eager mode, channels last: the faster of the two layouts on CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["train_step"]

CHANNELS = (16, 32, 64)


def _convolution(cin: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, channels, 3, stride, padding=1, bias=False)


class _Block(nn.Module):
    """Two 3×3 convolutions and the shortcut without parameters."""

    def __init__(self, cin: int, channels: int, stride: int):
        super().__init__()
        self.stride, self.new = stride, channels - cin
        self.conv_1 = _convolution(cin, channels, stride)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.conv_2 = _convolution(channels, channels)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm_1(self.conv_1(x)))
        y = self.norm_2(self.conv_2(y))
        if self.new:
            x = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.new))
        return torch.relu(x + y)


def _resnet(depth: int, channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_convolution(channels, 16), nn.BatchNorm2d(16), nn.ReLU()]
    cin = CHANNELS[0]
    for stage, width in enumerate(CHANNELS):
        for i in range((depth - 2) // 6):
            layers.append(_Block(cin, width, 2 if stage and not i else 1))
            cin = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, classes, bias=False)
    )


def train_step(
    depth: int, shape: tuple[int, int, int, int], classes: int
) -> Callable[[], torch.Tensor]:
    """A function that does one step of SGD on one batch and returns the loss.

    Args:
      depth: 6n+2.
      shape: (batch, height, width, channels) of the images.
      classes: of the logits.
    """
    batch, height, width, channels = shape
    model = _resnet(depth, channels, classes).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch, channels, height, width)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % classes

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
