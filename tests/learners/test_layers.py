"""Models that users write as classes: on the kernels where their forward is known layers, as they are where it may be anything else."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.networks import encoder as encoder_file
from fastmeta.networks.encoder import Encoder
from harness.any_module import Unknown
from harness.encoder_models import SEEN, Conv4, Counting, ResNet, images, made, same_as_the_module
from harness.engine import kernels_of
from harness.plain_loops import D, episode, same_as_the_plain_loop

FLAG = 2.0


def by_reference(op, args, static, cores):
    """In the place of `direct`."""
    assert op == "conv_forward"
    found = reference.conv_forward(*args, *static)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.cpu
@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("run", ["by the kernels", "by the reference"])
def test_encoders_that_are_seen(kind, training, run, monkeypatch):
    if "reference" in run:
        monkeypatch.setattr(encoder_file, "direct", by_reference)
    make, count = SEEN[kind]
    assert len(Encoder(made(make).train(training)).blocks) == count
    same_as_the_module(make, training)


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["by name", "a rest"])
def test_each_task_is_a_batch_of_its_own(kind):
    module, x = made(SEEN[kind][0]), images(12).unflatten(0, (3, 4))
    expected = torch.stack([made(SEEN[kind][0])(of_task) for of_task in x])
    torch.testing.assert_close(Encoder(module)(x, True), expected)


@pytest.mark.cpu
def test_the_kernels_run_a_resnet():
    """All of it but the average."""
    encoder = Encoder(made(ResNet))
    with fastmeta.backend("ext"):
        assert encoder._natively(images()) is not None


def forward(f, **more):
    return lambda: type("Changed", (Conv4,), {"forward": f, **more})()


def in_place(self, x):
    x += x
    return self.features(x).flatten(1)


def written_to(self, x):
    first = self.bn1(self.conv1(x))
    y = F.relu(first, inplace=True)
    return self.conv2(y) + self.conv2(first)


def caught(self, x):
    try:
        return self.unknown(x)
    except Exception:
        return self.features(x)


def discarded(self, x):
    self.bn1(self.conv1(x))
    return self.features(x)


def counted(self, x):
    global FLAG
    FLAG = 2.0
    return self.features(x)


OTHERS = {
    "a branch on values": forward(lambda self, x: self.features(x if x.sum() > 0 else -x)),
    "a branch on sizes": forward(lambda self, x: self.features(x) if len(x) > 1 else x),
    "random": forward(lambda self, x: self.features(x) * random.choice([1.0])),
    "random numbers of torch": forward(lambda self, x: self.features(x) + torch.rand(1, dtype=D)),
    "identity": forward(lambda self, x: self.features(x) if self.bn1 is not self.bn2 else x),
    "in place on the images": forward(in_place),
    "written to": forward(written_to),
    "a layer twice": forward(lambda self, x: self.bn2(self.conv2(self.bn2(self.conv2(self.conv1(x)))))),
    "an exception": forward(caught),
    "discarded": forward(discarded),
    "a global": forward(counted),
    "a parameter": forward(lambda self, x: self.features(x) * self.bn1.weight.sum()),
    "a property": forward(lambda self, x: self.p(x), p=property(lambda self: self.features)),
    "dropout between": forward(lambda self, x: self.conv2(self.drop(self.conv1(x)))),
    "other pools": forward(lambda self, x: F.max_pool2d(self.conv1(x), 2, ceil_mode=True)),
    "a transposed view": forward(lambda self, x: self.conv1(x.view(x.size(0), 2, 9, 9).transpose(2, 3))),
    "counting": lambda: ResNet(Counting),
    "not known": lambda: Unknown(Conv4()),
}


@pytest.mark.cpu
@pytest.mark.parametrize("kind", OTHERS)
def test_encoders_that_may_be_anything(kind):
    make = OTHERS[kind]
    known = Encoder(made(make)).blocks
    assert not known or kind in ("other pools", "random numbers of torch")
    if "random" not in kind and "images" not in kind and kind != "written to":
        same_as_the_module(make)


def scaled(self, x):
    y = self.features(x) if self.training or self.scale > 1 else self.conv1(x)
    return y if FLAG > 1 else y.flatten(1)


LATER = {
    "an attribute": lambda m: setattr(m.eval(), "scale", 2.0),
    "the mode": lambda m: m.eval(),
    "a hook": lambda m: m.bn1.register_forward_hook(lambda m, x, y: 2 * y),
    "a global hook of its forward": lambda m: setattr(m, "forward", lambda x: 2 * m.features(x)),
    "a method": lambda m: setattr(m, "features", m.conv1),
    "a method of the class": lambda m: setattr(type(m), "features", lambda self, x: self.conv1(x)),
    "another class": lambda m: setattr(m, "__class__", Conv4),
    "a layer": lambda m: setattr(m, "bn1", nn.Identity()),
    "a slope": lambda m: setattr(m, "bn2", nn.LeakyReLU(0.2)),
}


@pytest.mark.cpu
@pytest.mark.parametrize("kind", LATER)
def test_what_changes_later_is_seen(kind):
    module, x = made(forward(scaled)), images()
    encoder = Encoder(module)
    assert encoder.holds(module) and len(encoder.blocks) == 2
    encoder(x, False)
    LATER[kind](module)
    assert not encoder.holds(module)
    torch.testing.assert_close(Encoder(module)(x, False).detach(), module(x).detach(), rtol=1e-6, atol=1e-6) if (
        not module.training
    ) else None


@pytest.mark.cpu
def test_a_global_flag(monkeypatch):
    module = made(forward(scaled))
    encoder = Encoder(module)
    monkeypatch.setitem(globals(), "FLAG", 1.0)
    assert not encoder.holds(module)
    assert Encoder(module)(images(), False).ndim == 2


class Dense(nn.Module):
    def __init__(self, shuffled=False):
        super().__init__()
        if shuffled:
            self.last = nn.Linear(5, 3)
        self.first = nn.Linear(9, 5)
        if not shuffled:
            self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(F.relu(self.first(x.view(-1, 9))))


class Sines(Dense):
    def forward(self, x):
        return self.last(torch.sin(self.first(x.view(-1, 9))))


def sequential(activation):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 5), activation, nn.Linear(5, 3))


class SmallConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.Linear(36, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(x.view(x.size(0), -1))


class Body(nn.Sequential):
    """As learn2learn's CNN4: a Sequential with something after it."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        x = super(Body, self).forward(x)  # noqa: UP008
        return x.reshape(x.size(0), -1)


class Rectified(Body):
    def forward(self, x):
        return F.relu(super().forward(x))


class OfPixels(nn.Module):
    """As learn2learn's OmniglotCNN: images of what comes, the mean over pixels."""

    def __init__(self, over=(2, 3), pool=1, more=1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GroupNorm(1, 4), nn.ReLU(), nn.MaxPool2d(pool)
        )
        self.fc = nn.Sequential(*[nn.Linear(4, 4) for _ in range(more - 1)], nn.Linear(4, 3))
        self.over = over

    def forward(self, x):
        x = self.body(x.view(-1, 1, 3, 3)).mean(dim=self.over)
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize(
    ("make", "kernels"),
    [
        (lambda: nn.Sequential(Body(), nn.Linear(36, 3)), "conv"),
        (lambda: nn.Sequential(Rectified(), nn.Linear(36, 3)), None),  # a ReLU after the rows
        (OfPixels, "conv"),
        (lambda: OfPixels((-1, -2)), "conv"),
        (lambda: OfPixels(pool=2), None),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 3)),
            "conv",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(8, 3)), None),
        (lambda: OfPixels(more=2), None),
        (Dense, "mlp"),
        (Sines, "mlp"),
        (sequential(nn.SiLU()), "mlp"),
        (sequential(nn.LeakyReLU()), "mlp"),
        (sequential(nn.LeakyReLU(0.2)), None),
        (SmallConv, "conv"),
        (lambda: Dense(shuffled=True), "mlp"),
    ],
)
def test_maml_of_classes(make, kernels):
    learner, data = fastmeta.MAML(made(make), 0.1, 2), episode(shape=(1, 3, 3))
    assert kernels_of(learner) == kernels
    same_as_the_plain_loop(learner, data)
    halves = [x if x.ndim < 4 else x.flatten(2) for x in data]
    if isinstance(learner.model, Dense | OfPixels):
        same_as_the_plain_loop(learner, halves)
