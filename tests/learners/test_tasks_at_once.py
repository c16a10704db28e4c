"""When the general engine takes several tasks at once, fewer, or one by one: refusals of torch.vmap, memory, other errors, and models
that do otherwise in one task alone."""

import warnings

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.networks.tasks_at_once import is_batched
from harness.engine import force_graphs_kept, force_one_by_one, force_tasks_at_once, runs_one_by_one
from harness.plain_loops import D, episode, plain_losses, same_as_the_plain_loop, same_gradients


@pytest.fixture(autouse=True)
def _four_at_once(monkeypatch):
    force_tasks_at_once(monkeypatch, 4)
    force_graphs_kept(monkeypatch, 1)  # its look at one task is none of ours


class Layer(nn.Module):
    """f(h), with a record of whether it saw several tasks at once."""

    def __init__(self, f):
        super().__init__()
        self.f, self.several = f, []
        self.register_buffer("shared", torch.zeros(5, dtype=D))

    def forward(self, h):
        self.several.append(is_batched(h))
        return self.f(self, h)


def learner_with(f, steps=2):
    torch.manual_seed(2)
    layer = Layer(f)
    return fastmeta.MAML(nn.Sequential(nn.Linear(6, 5), layer, nn.Linear(5, 3)).to(D), 0.3, steps), layer


class NoRule(torch.autograd.Function):
    """x^3, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class NoMapping(NoRule):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


def in_place(layer, h):
    """Writes what a task computes into what all share."""
    with torch.no_grad():
        layer.shared.zero_().add_(h.mean(0))
    return h.tanh()


REFUSED = {
    "item": lambda layer, h: h.tanh() * h.detach().abs().max().item(),
    "branch": lambda layer, h: h.sin() if h.sum() > 0 else h.cos(),
    "in place": in_place,
    "copied": lambda layer, h: (layer.shared.copy_(h.detach()[0]), h.tanh())[1],
    "dynamic shape": lambda layer, h: h.tanh() + h.detach().nonzero().shape[0],
    "numpy": lambda layer, h: h.tanh() * torch.from_numpy(h.detach().numpy()).abs().max(),
    "function without a rule": lambda layer, h: NoRule.apply(h),
    "function without vmap": lambda layer, h: NoMapping.apply(h),
    "operator without a rule": lambda layer, h: h.tanh() + torch.histc(h.detach(), 5),
    "drawn in place": lambda layer, h: (torch.empty(5, dtype=D).bernoulli_(1.0), h.tanh())[1],
    "detached in place": lambda layer, h: h.tanh() * h.data.abs().mean(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_functorch_refuses_runs_one_by_one(kind):
    (learner, layer), data = learner_with(REFUSED[kind]), episode()
    for _ in range(2):
        same_as_the_plain_loop(learner, data)
        assert runs_one_by_one(learner)
    layer.several.clear()
    learner.loss(*data)
    assert not any(layer.several)  # remembered


def test_a_refusal_is_remembered_for_this_network_alone():
    (learner, layer), data = learner_with(REFUSED["item"]), episode()
    learner.loss(*data)
    handle = layer.register_forward_hook(lambda *args: None)
    assert not runs_one_by_one(learner)
    handle.remove()
    learner.model[1] = nn.Tanh()
    learner.loss(*data)
    assert not runs_one_by_one(learner)


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), RuntimeError("CUDA error: an illegal memory access"), KeyError("k")]
)
def test_other_errors_are_raised_at_once(error):
    def fail(layer, h):
        if len(layer.several) == 1:
            raise error
        return h.tanh()

    (learner, layer), data = learner_with(fail), episode()
    with pytest.raises(type(error), match=str(error.args[0])):
        learner.loss(*data)
    assert layer.several == [True]
    same_as_the_plain_loop(learner, data)
    assert any(layer.several[1:]) and not runs_one_by_one(learner)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_without_memory_half_as_many(error):
    """And the next call of these shapes begins there; one warning in all."""
    counts = []

    def full(layer, h):
        if is_batched(h):
            counts.append(torch._C._functorch.get_unwrapped(h).shape[0])
            if counts[-1] > 2:
                if error is None:
                    torch.empty(1 << 60)
                raise error
        return h.tanh()

    (learner, _), data = learner_with(full), episode()
    expected = plain_losses(learner, *data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same_gradients(learner.loss(*data), expected, list(learner.parameters()))
        assert counts[0] == 4 and set(counts[1:]) == {2}
        counts.clear()
        learner.loss(*data)
        assert set(counts) == {2}
        learner.loss(*episode(shots=3))
    assert [str(w.message) for w in caught if "memory" in str(w.message)] == [
        "MAML: memory ran out with all tasks at once; half as many, and again, as long as it does. task_chunk sets how many"
    ]
    assert not runs_one_by_one(learner)


def test_memory_that_lasts_for_no_task_is_an_error():
    def full(layer, h):
        raise torch.OutOfMemoryError("CUDA out of memory")

    (learner, layer), data = learner_with(full), episode()
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="MAML: memory ran out"):
        learner.loss(*data)
    assert layer.several == [True, True, False]


def test_a_failed_attempt_leaves_nothing_behind():
    """Neither in the generators nor in buffers: the numbers are those of a run one by one."""

    def noisy(layer, h):
        layer.shared += 1
        noise = torch.rand_like(h)
        return h.tanh() * noise * (1 if h.detach().sum().item() else 2)

    data, found = episode(), []
    for forced in (False, True):
        learner, layer = learner_with(noisy)
        force_one_by_one(learner, forced)
        torch.manual_seed(7)
        found.append((learner.loss(*data), layer.shared.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def hooked(layer, h):
    if h.requires_grad:
        h.register_hook(lambda g: 3 * g)
    return h.tanh()


def state(layer, h):
    """Keeps the mean for the next call, as a plain attribute and as a buffer."""
    before = layer.__dict__.get("last", 0.0)
    layer.last = h.detach().mean()
    return h.tanh() * (1 + before)


def state_in_a_buffer(layer, h):
    before = layer.shared
    layer.shared = h.detach().mean(0)
    return h.tanh() * (1 + before)


@pytest.mark.parametrize("f", [hooked, lambda layer, h: h.tanh() if h.requires_grad else h.sin()])
def test_models_that_ask_for_gradients_run_one_by_one(f):
    """Under torch.vmap a tensor says that it needs none, and a hook on it is never called."""
    (learner, _layer), data = learner_with(f), episode()
    same_as_the_plain_loop(learner, data)
    assert runs_one_by_one(learner)


@pytest.mark.parametrize("f", [state, state_in_a_buffer])
def test_models_with_a_state_run_one_by_one(f):
    """What torch.vmap made of it would hold all tasks."""
    data, found = episode(), []
    for forced in (False, True):
        learner, layer = learner_with(f)
        force_one_by_one(learner, forced)
        found.append((learner.loss(*data), learner.loss(*data), layer.__dict__.get("last", layer.shared)))
        assert not is_batched(found[-1][2])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_model_that_torch_vmap_takes_is_watched_once():
    (learner, layer), data = learner_with(lambda layer, h: h.tanh()), episode()
    for _ in range(2):
        same_as_the_plain_loop(learner, data)
        seen = learner._plan().seen
        assert seen.learned.vmapped == seen.modes_now() and not seen.learned.one_by_one
    assert any(layer.several)
