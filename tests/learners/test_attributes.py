"""A learner's attributes assigned between calls, parameters frozen, copies, and what is kept from one call to the next."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastmeta
from harness.any_module import Unknown
from harness.engine import kernels_of
from harness.plain_loops import D, episode, mlp, same_as_the_plain_loop


def test_freezing_and_unfreezing():
    learner, data = fastmeta.MAML(mlp(), 0.1, 2, adapt=["0", "4"]), episode()
    learner.model[4].requires_grad_(False)
    assert learner.adapted == ["0.weight", "0.bias"]
    same_as_the_plain_loop(learner, data)
    learner.loss(*data).sum().backward()
    assert learner.model[4].weight.grad is None and learner.model[2].weight.grad is not None
    learner.model[4].requires_grad_(True)
    assert learner.adapted == ["0.weight", "0.bias", "4.weight", "4.bias"]
    same_as_the_plain_loop(learner, data)


def test_attributes_may_be_assigned():
    learner, data = fastmeta.MAML(mlp(), 0.1, 1), episode()
    learner.model = Unknown(mlp())
    same_as_the_plain_loop(learner, data)
    learner.adapted = ["model.4"]
    assert learner.adapted == ["model.4.weight", "model.4.bias"]
    same_as_the_plain_loop(learner, data)
    learner.adapted = None
    learner.model, learner.steps, learner.lr, learner.first_order = mlp(), 3, 0.3, True
    assert kernels_of(learner) == "mlp"
    same_as_the_plain_loop(learner, data)
    scores = lambda outputs, y: (outputs.gather(1, y[:, None]) - 1).square().mean()  # noqa: E731
    learner.inner_loss = scores
    same_as_the_plain_loop(learner, [x.clamp(min=0) if x.dtype == torch.int64 else x for x in data], loss=scores)
    learner.inner_loss = "mse"
    numbers = [x if x.is_floating_point() else torch.randn(*x.shape, 3, dtype=D) for x in data]
    same_as_the_plain_loop(learner, numbers, loss=F.mse_loss)
    assert list(learner.state_dict()) == [f"model.{path}" for path in learner.model.state_dict()]
    for name, value, message in (
        ("steps", -1, "steps must be a whole number, 0 or more, got -1"),
        ("lr", "fast", "lr must be a number or a tensor, got str"),
        ("task_chunk", 0, "task_chunk must be None or a whole number, 1 or more, got 0"),
        ("inner_loss", "hinge", "loss must be 'cross_entropy', 'mse' or a function, got 'hinge'"),
        ("first_order", "no", "first_order must be True or False, got 'no'"),
    ):
        kept = getattr(learner, name)
        setattr(learner, name, value)
        with pytest.raises((ValueError, TypeError), match=f"MAML: {message}"):
            learner.loss(*numbers)
        setattr(learner, name, kept)
    learner.adapted = ["nothing"]
    with pytest.raises(ValueError, match="MAML: adapt must name parameters with requires_grad, or modules with some"):
        learner.loss(*numbers)


def test_copies_follow_their_own_model():
    learner, data = fastmeta.MAML(mlp(), 0.1, 2), episode()
    learner.loss(*data).sum().backward()
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        twin.model[-1] = nn.Linear(6, 3).to(D)
        same_as_the_plain_loop(twin, data)
        assert not torch.allclose(twin.loss(*data), learner.loss(*data))


def test_stand_ins_keep_what_is_frozen():
    """torch.func.functional_call with tensors that require no gradient: the names that are adapted stay."""
    learner, data = fastmeta.MAML(mlp(), 0.1, 2), episode()
    learner.model[0].requires_grad_(False)
    expected = learner.loss(*data)
    params = {name: p.detach() for name, p in learner.named_parameters()}
    torch.testing.assert_close(functional_call(learner, params, data), expected.detach())
    torch.testing.assert_close(functional_call(copy.deepcopy(learner), params, data), expected.detach())
    kept = learner._kept
    functional_call(learner, params, data)
    assert learner._kept is kept  # nothing of the call is left


def test_the_way_back_needs_the_same_model():
    """Between `learner(...)` and its backward, which takes the steps again."""
    for later in (lambda m: m.__setitem__(1, nn.Tanh()), lambda m: m.eval()):
        learner, data = fastmeta.MAML(nn.Sequential(mlp(), nn.Dropout(0.1)), 0.1, 2), episode()
        outputs = learner(*data[:3])
        later(learner.model)
        with pytest.raises(RuntimeError, match="MAML: the model must stay as it is until the way back"):
            outputs.sum().backward()
    learner, data = fastmeta.MAML(Unknown(mlp()), 0.1, 2), episode()
    learner.model.register_buffer("scale", torch.ones((), dtype=D))
    state = {name: x.detach().clone().requires_grad_() for name, x in learner.state_dict().items()}
    outputs = functional_call(learner, state, data[:3])
    with pytest.raises(RuntimeError, match="MAML: the model must stay as it is until the way back"):
        outputs.sum().backward()


def test_the_plan_is_kept():
    """No new look in a training loop, and none after the parameters moved in place."""
    learner, data = fastmeta.MAML(mlp(), nn.Parameter(torch.tensor(0.1, dtype=D)), 1), episode()
    optimiser = torch.optim.Adam(learner.parameters())
    plan = learner._plan()
    for _ in range(2):
        optimiser.zero_grad()
        learner.loss(*data).mean().backward()
        optimiser.step()
        assert learner._plan() is plan
