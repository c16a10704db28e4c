"""Encoders that users write as classes, of layers that the kernels know."""

import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.networks.encoder import Encoder
from harness.plain_loops import D


class Block(nn.Module):
    def __init__(self, into, out):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.relu(self.bn(self.conv(x))))


class Conv4(nn.Module):
    """Layers by name; a view."""

    def __init__(self, width=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, width, 3, padding=1), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.drop = nn.Dropout(0.5)
        self.scale = 1.0

    def features(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def forward(self, x):
        x = self.features(x)
        return x.view(x.size(0), -1)


class Inherits(Conv4):
    def features(self, x):
        return super().features(x)

    def forward(self, x):
        return super(Inherits, self).forward(x)  # noqa: UP008


class OfBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(2, 4), Block(4, 4)])

    def forward(self, x):
        n = x.shape[0]
        for block in self.blocks:
            x = block(x)
        return torch.flatten(x, 1).reshape(n, -1)


class Averaged(Conv4):
    def __init__(self):
        super().__init__()
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.average(self.features(x)).flatten(1))


class Dropped(Conv4):
    """In place, on what the blocks hand on."""

    def forward(self, x):
        return F.dropout(F.max_pool2d(self.features(x), 2), 0.3, self.training, inplace=True).mean((2, 3))


class OwnSequential(nn.Sequential):
    def __init__(self):
        super().__init__(Block(2, 4), nn.Identity(), Block(4, 4), nn.Flatten())


class Residual(nn.Module):
    """A block of a ResNet-12."""

    counts = False

    def __init__(self, into, out, drop=0.0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv3, self.bn3 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out))
        self.relu, self.maxpool, self.drop_rate = nn.LeakyReLU(0.1), nn.MaxPool2d(2), drop

    def forward(self, x):
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        out = self.maxpool(self.relu(out))
        if self.drop_rate > 0:
            out = F.dropout(out, p=self.drop_rate, training=self.training, inplace=True)
        return out


class Counting(Residual):
    def forward(self, x):
        self.counted = getattr(self, "counted", 0) + 1
        return super().forward(x)


class ResNet(nn.Module):
    def __init__(self, block=Residual, drop=0.0):
        super().__init__()
        self.layer1, self.layer2 = block(2, 3), block(3, 4, drop)
        self.avgpool = nn.AvgPool2d(2, stride=1)

    def forward(self, x):
        x = self.avgpool(self.layer2(self.layer1(x)))
        return x.view(x.size(0), -1)


SEEN = {"by name": (Conv4, 2), "blocks": (OfBlocks, 2), "a rest": (Averaged, 2), "in place": (Dropped, 2),
        "a Sequential": (OwnSequential, 2), "super": (Inherits, 2),
        "ResNet": (ResNet, 8), "ResNet with dropout": (lambda: ResNet(drop=0.4), 8)}  # fmt: skip


def made(make):
    torch.manual_seed(0)
    return make().to(D)


def images(n=6):
    torch.manual_seed(1)
    return torch.randn(n, 2, 9, 9, dtype=D)


def same_as_the_module(make, training=True, change=lambda m: None):
    """Values, gradients, running statistics and random numbers."""
    found = []
    for run in (lambda m, x: Encoder(m)(x, False), lambda m, x: m(x)):
        module, x = made(make).train(training), images().requires_grad_()
        change(module)
        torch.manual_seed(2)
        y = run(module, x)
        grads = torch.autograd.grad(y.sin().sum(), [x, *module.parameters()], allow_unused=True)
        found.append((y, grads, module.state_dict(), torch.rand(3)))
    torch.testing.assert_close(*found)
