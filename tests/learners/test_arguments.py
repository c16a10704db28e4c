"""What learners are built from and called with: wrong types and shapes are named, and what they return is checked."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from harness.any_module import Unknown
from harness.learner_cases import ALL, N, data_of, encoder, episode, made, mlp, says

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
    "beta": [None, "1", 0, -1.0, float("inf"), [1.0]],
    "dropout": [None, "0.5", -0.1, 1.5, float("nan")], "kl_weight": NUMBER[:6], "encoder_weight": NUMBER[:6],
    "orthogonality_weight": NUMBER[:6],
}  # fmt: skip
LEARNERS = (
    "MAML",
    "MetaSGD",
    "ANIL",
    "IMAML",
    "Reptile",
    "ProtoMAML",
    "ProtoNet",
    "MatchingNet",
    "MahalanobisNet",
    "LEO",
)
BUILT = {name: [*inspect.signature(getattr(fastmeta, name).__init__).parameters][1:] for name in LEARNERS}
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
    allowed = inspect.signature(kind.__init__).parameters[argument].default
    for wrong in (value for value in OPTIONS[argument] if value is not None or allowed is not None):
        given = {n: NEEDED[n]() for n in BUILT[name] if n in NEEDED} | {argument: wrong}
        with pytest.raises((ValueError, TypeError)) as raised:
            kind(**given)
        assert re.match(rf"{name}: .*{argument} must .*, got ", str(raised.value)), (wrong, str(raised.value))
    made_again = kind(**{n: NEEDED[n]() for n in BUILT[name] if n in NEEDED})
    assert isinstance(made_again, nn.Module)


def test_arguments_of_a_context_are_named():
    with says("FullContext", "features must be a whole number, 1 or more, got None"):
        fastmeta.FullContext(None)
    with says("FullContext", "steps must be a whole number, 1 or more, got 0"):
        fastmeta.FullContext(5, 0)
