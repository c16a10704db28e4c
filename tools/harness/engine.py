"""The private parts of the learners that tests look at or force."""

import pytest

from fastmeta.networks import meta_gradient, tasks_at_once
from fastmeta.networks.convnet import ConvNet
from fastmeta.networks.mlp import Mlp


def kernels_of(learner):
    """The family of ops that runs the learner's network; None: the general engine."""
    return {Mlp: "mlp", ConvNet: "conv"}.get(type(learner._plan().network))


def runs_one_by_one(learner):
    """Whether the engine has learned that torch.vmap does not take the network."""
    return learner._plan().seen.learned.one_by_one


def force_one_by_one(learner, forced=True):
    learner._plan().seen.learned.one_by_one = forced


def force_tasks_at_once(monkeypatch, count):
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: count)


def force_graphs_kept(monkeypatch, count):
    monkeypatch.setattr(meta_gradient, "graphs_kept", lambda problem, flat: count)


@pytest.fixture(params=[1, 3], ids=["one by one", "several at once"])
def at_once(request, monkeypatch):
    """How many tasks the general engine takes at once."""
    force_tasks_at_once(monkeypatch, request.param)
    return request.param
