"""The private parts of the learners that tests look at or force."""

import pytest

from fastmeta.learners import _at_once, _engine


def kernels_of(learner):
    """The family of ops that runs the learner's network; None: the general engine."""
    plan = learner._plan()
    return "mlp" if plan.mlp is not None else "conv" if plan.net is not None else None


def runs_one_by_one(learner):
    """Whether the engine has learned that torch.vmap does not take the network."""
    return learner._plan().seen.learned.one_by_one


def force_one_by_one(learner, forced=True):
    learner._plan().seen.learned.one_by_one = forced


def force_tasks_at_once(monkeypatch, count):
    monkeypatch.setattr(_at_once, "tasks_at_once", lambda problem, flat: count)


def force_graphs_kept(monkeypatch, count):
    monkeypatch.setattr(_engine, "graphs_kept", lambda problem, flat: count)


@pytest.fixture(params=[1, 3], ids=["one by one", "several at once"])
def at_once(request, monkeypatch):
    """How many tasks the general engine takes at once."""
    force_tasks_at_once(monkeypatch, request.param)
    return request.param
