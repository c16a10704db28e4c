"""What learners are built from and called with: wrong types and values, labels out of range, rates, no tasks, `.to()`."""

import re
import warnings

import numpy as np
import pytest
import torch
from learner_cases import (
    FEATURES,
    LEARNERS,
    Loss,
    N,
    Q,
    Unknown,
    batch_norm,
    encoder,
    episode,
    learner_of,
    mlp,
)
from torch import nn
from torch.func import functional_call

import fastmeta
from fastmeta import _check
from fastmeta.learners import _episode

D = torch.float64
MORE = {
    "MAML (convolutions)": lambda: fastmeta.MAML(convnet(), 0.1, 2),
    "MetaSGD (unknown)": lambda: fastmeta.MetaSGD(Unknown(mlp()), 0.1, 2),
    "Reptile (any module)": lambda: fastmeta.Reptile(Unknown(mlp()), 0.1, 2),
    "IMAML (any module)": lambda: fastmeta.IMAML(Unknown(mlp()), 0.1, 2),
    "ANIL (any module)": lambda: fastmeta.ANIL(encoder(), Unknown(nn.Linear(3, N)), 0.1, 2),
}
ALL = LEARNERS | MORE
FIRST_ORDER = ("IMAML", "Reptile", "IMAML (any module)", "Reptile (any module)")


def convnet():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * FEATURES, N))


def made(name):
    return ALL[name]().to(D)


def data_of(name):
    sx, sy, qx, qy = episode()
    if name == "MAML (convolutions)":
        sx, qx = (torch.randn(*x.shape[:2], 1, 3, FEATURES, dtype=D) for x in (sx, qx))
    return [sx, sy, qx, qy]


def says(name, text, kind=(ValueError, TypeError)):
    return pytest.raises(kind, match=f"^{name.split(' (')[0]}: {text}")


# labels


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("which", "label"), [(1, 7), (1, -3), (3, N), (3, -1)])
@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
def test_a_label_out_of_range_is_refused(name, which, label, backend):
    learner, data = made(name), data_of(name)
    data[which] = data[which].clone()
    data[which][1, 2] = label
    argument = "support_y" if which == 1 else "query_y"
    with says(name, rf"{argument} must be in \[0, {N}\)( or ignore_index=-100)?, got {label}", ValueError):
        learner.loss(*data)
    with torch.no_grad(), says(name, rf"{argument} must be in", ValueError):
        learner.loss(*data)
    if which == 1:
        with says(name, rf"support_y must be in \[0, {N}\)", ValueError):
            learner(*data[:3])


@pytest.mark.parametrize("name", [name for name in ALL if name not in FIRST_ORDER])
@pytest.mark.parametrize("which", [1, 3])
@pytest.mark.parametrize("way", ["torch.func", "compile"])
def test_where_labels_may_not_be_looked_at_a_wrong_one_gives_nan(name, which, way):
    """The loss of its task, and every gradient that it reaches, to parameters and inputs."""
    if way == "compile" and "FullContext" in name:
        pytest.skip("torch.compile takes no LSTM")
    learner, data = made(name), data_of(name)
    data[which] = data[which].clone()
    data[which][1, 2] = 7
    params = {n: p.detach().clone().requires_grad_() for n, p in learner.named_parameters()}
    loss = Loss(learner)
    images = [x.clone().requires_grad_() for x in (data[0], data[2])]
    if way == "torch.func":

        def value(params, *images):
            losses = functional_call(
                loss, {f"learner.{n}": p for n, p in params.items()}, (images[0], data[1], images[1], data[3])
            )
            return losses.sum(), losses

        found, losses = torch.func.grad(value, (0, 1, 2), has_aux=True)(params, *images)
    else:
        torch._dynamo.reset()
        losses = torch.compile(learner.loss, fullgraph=True, backend="aot_eager")(
            images[0], data[1], images[1], data[3]
        )
        grads = torch.autograd.grad(losses.sum(), [*learner.parameters(), *images], allow_unused=True)
        found = (dict(zip(params, grads, strict=False)), *grads[len(params) :])
    assert losses.isnan().tolist() == [False, True]
    unused = [n for n, g in found[0].items() if g is None or not g.isnan().any()]
    assert unused == [n for n in unused if which == 3 and n.startswith("relation")], unused
    for g, ours in zip(found[1:], (True, True), strict=True):
        assert not g[0].isnan().any() and g[1].isnan().any() == ours


@pytest.mark.parametrize(
    "name", ["MAML (any module)", "Reptile (any module)", "IMAML (any module)", "ProtoMAML", "MAML", "IMAML"]
)
@pytest.mark.parametrize("which", [1, 3])
@pytest.mark.parametrize("at_once", [1, 2])
def test_on_a_device_that_would_have_to_wait(name, which, at_once, monkeypatch):
    """The general engine as it runs on CUDA: nothing is read, NaN in the loss and in the gradient."""
    from fastmeta.learners import _at_once

    monkeypatch.setattr(_check, "_visible", lambda x: False)
    for function in ("refuse_label_out_of_range", "refuse_empty_class"):
        monkeypatch.setattr(_check, function, lambda *args: None)
    monkeypatch.setattr(_at_once, "tasks_at_once", lambda problem, flat: at_once)
    learner, data = made(name), data_of(name)
    data[which] = data[which].clone()
    data[which][1, 2] = 7
    with fastmeta.backend("reference"):
        losses = learner.loss(*data)
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True]
    if which == 1 or "Reptile" not in name:  # whose gradient does not depend on the query
        assert all(p.grad.isnan().any() for p in learner.parameters())


# rates


@pytest.mark.parametrize("name", [name for name in ALL if "Net" not in name])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(name, wrong):
    learner, data = made(name), data_of(name)
    kind = name.split(" (")[0]
    tensors = [*learner.alpha] if kind == "MetaSGD" else [learner.lr] if isinstance(learner.lr, nn.Parameter) else []
    if not tensors:
        for rate in (wrong, torch.tensor(wrong, dtype=D)):
            learner.lr = rate
            with says(name, "lr must be finite", ValueError):
                learner.loss(*data)
            with says(name, "lr must be finite", ValueError):
                learner(*data[:3])
        return
    for rate in tensors if wrong != wrong else tensors[-1:]:
        before = rate.detach().clone()
        with torch.no_grad():
            rate.view(-1)[-1] = wrong
        with says(name, "(lr|the rate of .*) must be finite", ValueError):
            learner.loss(*data)
        with says(name, "(lr|the rate of .*) must be finite", ValueError):
            learner(*data[:3])
        with torch.no_grad():
            rate.copy_(before)
    learner.loss(*data)


# no tasks


@pytest.mark.parametrize("name", ALL)
def test_no_tasks_give_no_losses_and_gradients_of_zero(name):
    learner, data = made(name), [x[:0] for x in data_of(name)]
    data[0].requires_grad_()
    losses = learner.loss(*data)
    assert losses.shape == (0,) and losses.dtype == D
    losses.sum().backward()
    assert (
        all(p.grad is not None and not p.grad.any() for p in learner.parameters())
        and data[0].grad.shape == data[0].shape
    )
    outputs = learner(*data[:3])
    assert outputs.shape == (0, Q, N) and outputs.dtype == D


@pytest.mark.parametrize("kind", [fastmeta.ProtoNet, fastmeta.MatchingNet])
def test_without_tasks_or_examples_the_ways_must_be_known(kind):
    sx, sy, qx, qy = episode()
    learner = kind(encoder()).to(D)
    assert learner.loss(sx[:0], sy[:0], qx[:0], qy[:0]).shape == (0,)
    with says(kind.__name__, "num_classes must be given where there is no task, got None"):
        learner(sx[:0], sy[:0], qx[:0])
    with says(kind.__name__, r"support_y must hold at least one example, got shape \[2, 0\]"):
        learner(sx[:, :0], sy[:, :0], qx)


# the number of ways


class OnCuda(torch.Tensor):
    """Labels that say that they are there."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("kind", [fastmeta.ProtoNet, fastmeta.MatchingNet])
def test_reading_the_ways_on_a_gpu_warns_once_and_is_never_kept(kind):
    _episode._warn_that_it_waits.cache_clear()
    learner, (sx, sy, qx, _) = kind(encoder()).to(D), episode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for ways in (2, 3, 2):
            labels = torch.arange(4).remainder(ways).expand(2, 4).contiguous()
            assert learner(sx, labels.as_subclass(OnCuda), qx).shape[-1] == ways
    ours = [str(w.message) for w in caught if "num_classes" in str(w.message)]
    assert ours == [
        f"{kind.__name__}: without num_classes every call waits for the device, to read the number of ways from the labels; pass it"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(encoder(), num_classes=2).to(D)(sx, sy.as_subclass(OnCuda), qx)


# tensors that are no parameters


def test_a_rate_follows_the_learner():
    lr = torch.tensor([0.1, 0.2])
    for build in (lambda r: fastmeta.MAML(mlp(), r, 2), lambda r: fastmeta.ANIL(encoder(), nn.Linear(3, N), r, 2),
                  lambda r: fastmeta.ProtoMAML(encoder(), N, r, 2), lambda r: fastmeta.MAML(batch_norm(), r, 2)):  # fmt: skip
        learner = build(lr)
        before = list(learner.state_dict())
        learner.double()
        assert learner.lr.dtype == D and lr.dtype == torch.float32 and list(learner.state_dict()) == before
        learner.loss(*episode()).sum().backward()
        assert learner.to("meta").lr.device.type == "meta"


def test_a_rate_that_is_trained_elsewhere_stays_the_same_tensor():
    lr = torch.tensor(0.1, requires_grad=True)
    learner = nn.Sequential(fastmeta.MAML(mlp(), lr, 1)).double()[0]
    assert learner.lr is lr and lr.dtype == D and lr.is_leaf
    learner.loss(*episode()).sum().backward()
    assert lr.grad.dtype == D and lr.grad.abs() > 0
    learner.float()
    assert lr.grad.dtype == torch.float32
    scaled = 2 * torch.tensor(0.1, dtype=D, requires_grad=True)
    learner = fastmeta.MAML(mlp(), scaled, 1).double()
    assert learner.lr is scaled


@pytest.mark.parametrize("kind", [fastmeta.ProtoNet, fastmeta.MatchingNet])
def test_a_temperature_follows_the_learner(kind):
    learner = kind(encoder(), temperature=torch.tensor([0.5])).double()
    assert learner.temperature.dtype == D and "temperature" not in learner.state_dict()
    learner.loss(*episode()).sum().backward()


# types

NOT_A_TENSOR = [None, "x", [[0.0]], np.zeros((2, 4, 3)), 3]


@pytest.mark.parametrize("name", ALL)
def test_wrong_arguments_of_a_call_are_named(name):
    learner, right = made(name), data_of(name)
    names = ("support_x", "support_y", "query_x", "query_y")
    for i, argument in enumerate(names):
        for wrong in NOT_A_TENSOR:
            data = [*right]
            data[i] = wrong
            with says(name, rf"{argument} must be a tensor, got {type(wrong).__name__}", TypeError):
                learner.loss(*data)
    for i, wrong, text in (
        (0, right[0][0, 0, 0].squeeze(), "support_x must have at least 3 dimensions"),
        (2, right[2][0, 0].flatten(), "query_x must have at least 3 dimensions"),
        (1, right[1][0], "support_y must have at least 2 dimensions"),
        (1, right[1].double(), "support_y must be int64 class indices, got torch.float64"),
        (1, right[1].int(), "support_y must be int64 class indices, got torch.int32"),
        (3, right[3].bool(), "query_y must be int64 class indices, got torch.bool"),
        (3, right[3][..., None], r"query_y must have shape \[2, 3\], got \[2, 3, 1\]"),
        (1, right[1][:, :2], r"support_y must have shape \[2, 4\] in front, got \[2, 2\]"),
        (2, right[2].float(), "query_x must have the dtype of support_x, torch.float64, got torch.float32"),
        (0, right[0].long(), "query_x must have the dtype of support_x, torch.int64, got torch.float64"),
        (2, right[2].to("meta"), "query_x must be on the device of support_x, cpu, got meta"),
        (3, right[3][:1], r"query_y must have the 2 tasks of support_x in front, got shape \[1, 3\]"),
    ):
        data = [*right]
        data[i] = wrong
        with says(name, text):
            learner.loss(*data)
    learner.loss(*right)


@pytest.mark.parametrize("name", ["MAML", "MetaSGD", "ANIL", "IMAML", "Reptile", "LEO"])
def test_native_networks_name_a_dtype_that_is_not_theirs(name):
    learner, data = made(name).float(), data_of(name)
    if name == "ANIL":
        learner.body = nn.Flatten()
    with says(name, ".* must have the dtype of .*, got torch.float(64|32)", TypeError):
        learner.loss(*data)
    if name != "LEO":
        with says(name, ".* must be float32, float64, float16 or bfloat16, got torch.int64", TypeError):
            learner.loss(data[0].long(), data[1], data[2].long(), data[3])


def test_squared_errors_take_targets_of_the_outputs_shape():
    """[n] beside [n, 1] would broadcast to [n, n]."""
    for model in (nn.Linear(3, 1), Unknown(nn.Linear(3, 1))):
        learner, (sx, _, qx, _) = fastmeta.MAML(model, 0.1, 1, loss="mse"), episode(torch.float32)
        with says("MAML", "(support_y|targets) must have (the shape of a task's outputs|shape)", ValueError):
            learner.loss(sx, sx[..., 0], qx, qx[..., 0])
        with says("MAML", "support_y must be floating numbers, got torch.int64", TypeError):
            learner.loss(sx, sx[..., :1].long(), qx, qx[..., :1])
        with says("MAML", ".*must have the dtype of .*, got torch.float64", TypeError):
            learner.loss(sx, sx[..., :1].double(), qx, qx[..., :1].double())


def test_what_a_model_returns_is_named():
    sx, sy, qx, qy = episode(torch.float32)
    shaped = lambda f: type("Shaped", (Unknown,), {"forward": lambda self, x: f(self.model(x))})(mlp())  # noqa: E731
    for f, text in (
        (lambda y: (y, y), "model must return a tensor, got tuple"),
        (lambda y: y[..., None], "for cross-entropy the model must return floating outputs"),
        (lambda y: y.long(), "for cross-entropy the model must return floating outputs"),
    ):
        with says("MAML", text):
            fastmeta.MAML(shaped(f), 0.1, 1).loss(sx, sy, qx, qy)
    for kind in (fastmeta.ProtoNet, fastmeta.MatchingNet):
        with says(kind.__name__, "encoder must return a tensor, got tuple"):
            kind(shaped(lambda y: (y, y))).loss(sx, sy, qx, qy)
        with says(kind.__name__, "encoder must return a row for each of 14 examples"):
            kind(shaped(lambda y: torch.cat([y, y]))).loss(sx, sy, qx, qy)


WHOLE = [None, "2", 1.5, True, [1], np.array(2), -1]
NUMBER = [None, "0.1", [0.1], True, np.array([0.1]), float("nan"), torch.ones(2, 2), torch.tensor(1)]
MODULE = [None, "model", torch.relu, nn.Linear, [nn.Linear(2, 2)]]
FLAG = [None, "yes", 2, [True]]
OPTIONS = {
    "model": MODULE, "encoder": MODULE, "body": MODULE, "head": MODULE, "context": ["lstm", torch.relu],
    "lr": NUMBER, "finetune_lr": NUMBER[:6], "steps": WHOLE, "finetune_steps": WHOLE, "cg_steps": [*WHOLE, 0],
    "features": [*WHOLE, 0], "latents": [*WHOLE, 0], "ways": [*WHOLE, 0], "num_classes": [*WHOLE[1:], 0],
    "task_chunk": [*WHOLE[1:], 0], "first_order": FLAG, "loss": [None, "hinge", 3, ["mse"]], "adapt": ["0", 3, [0], ["no"]],
    "loss_weights": [[], "1", 3, [float("nan")], ["a"]], "metric": [None, "dot", 3, ["cosine"]],
    "temperature": [None, "1", 0.0, -1.0, float("nan"), [1.0], torch.ones(2), torch.tensor(1)],
    "strength": [None, "1", 0, -1.0, float("inf"), [1.0]], "optimiser": [None, "rmsprop", 3],
    "dropout": [None, "0.5", -0.1, 1.5, float("nan")], "kl_weight": NUMBER[:6], "encoder_weight": NUMBER[:6],
    "orthogonality_weight": NUMBER[:6],
}  # fmt: skip
BUILT = {
    "MAML": ("model", "lr", "steps", "loss", "first_order", "adapt", "loss_weights", "task_chunk"),
    "MetaSGD": ("model", "lr", "steps", "loss", "first_order", "adapt", "loss_weights", "task_chunk"),
    "ANIL": ("body", "head", "lr", "steps", "loss", "first_order"),
    "IMAML": ("model", "lr", "steps", "strength", "cg_steps", "loss", "adapt", "task_chunk"),
    "Reptile": ("model", "lr", "steps", "optimiser", "loss", "adapt", "task_chunk"),
    "ProtoMAML": ("encoder", "ways", "lr", "steps", "first_order", "task_chunk"),
    "ProtoNet": ("encoder", "metric", "temperature", "num_classes"),
    "MatchingNet": ("encoder", "context", "metric", "temperature", "num_classes"),
    "LEO": ("features", "latents", "lr", "steps", "finetune_lr", "finetune_steps", "dropout", "kl_weight", "encoder_weight",
            "orthogonality_weight", "num_classes"),
}  # fmt: skip
NEEDED = {
    "model": mlp,
    "encoder": encoder,
    "body": encoder,
    "head": lambda: nn.Linear(3, N),
    "ways": lambda: N,
    "features": lambda: 3,
}


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, ours in BUILT.items() for argument in ours])
def test_wrong_arguments_of_a_constructor_are_named(name, argument):
    kind = getattr(fastmeta, name)
    for wrong in OPTIONS[argument]:
        given = {n: NEEDED[n]() for n in BUILT[name] if n in NEEDED} | {argument: wrong}
        with pytest.raises((ValueError, TypeError)) as raised:
            kind(**given)
        assert re.match(rf"{name}: .*{argument} must .*, got ", str(raised.value)), (wrong, str(raised.value))
    made_again = kind(**{n: NEEDED[n]() for n in BUILT[name] if n in NEEDED})
    assert isinstance(made_again, nn.Module)


def test_every_learner_and_argument_is_tested():
    import inspect

    for name, ours in BUILT.items():
        assert list(inspect.signature(getattr(fastmeta, name).__init__).parameters)[1:] == list(ours)
    with says("FullContext", "features must be a whole number, 1 or more, got None"):
        fastmeta.FullContext(None)


def test_learner_of_keeps_its_names():
    assert set(LEARNERS) <= set(ALL) and learner_of("MAML") is not None
