"""Labels out of range, where they may be looked at and where not; the number of ways read from them; on every learner."""

import warnings

import pytest
import torch
from torch.func import functional_call

import fastmeta
from fastmeta import _check
from fastmeta.learners import _episode
from harness.engine import force_tasks_at_once
from harness.learner_cases import ALL, FIRST_ORDER, Loss, N, data_of, encoder, episode, made, says

D = torch.float64


def wrong_at(which, name, label=7):
    data = data_of(name)
    data[which] = data[which].clone()
    data[which][1, 2] = label
    return data


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("which", "label"), [(1, 7), (1, -3), (3, N), (3, -1)])
@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
def test_a_label_out_of_range_is_refused(name, which, label, backend):
    learner, data = made(name), wrong_at(which, name, label)
    argument = "support_y" if which == 1 else "query_y"
    with says(name, rf"{argument} must be in \[0, {N}\)( or ignore_index=-100)?, got {label}", ValueError):
        learner.loss(*data)
    with torch.no_grad(), says(name, rf"{argument} must be in", ValueError):
        learner.loss(*data)
    if which == 1:
        with says(name, rf"support_y must be in \[0, {N}\)", ValueError):
            learner(*data[:3])


NOT_LOOKED_AT = [name for name in ALL if name not in FIRST_ORDER]


def check_nan(which, losses, by_name, of_images):
    """Of the second task, which has a wrong label: the loss, and every gradient that it reaches, to parameters and inputs."""
    assert losses.isnan().tolist() == [False, True]
    unused = [n for n, g in by_name.items() if g is None or not g.isnan().any()]
    assert unused == [n for n in unused if which == 3 and n.startswith("relation")], unused
    for g in of_images:
        assert not g[0].isnan().any() and g[1].isnan().any()


@pytest.mark.parametrize("name", NOT_LOOKED_AT)
@pytest.mark.parametrize("which", [1, 3])
def test_where_labels_may_not_be_looked_at_a_wrong_one_gives_nan(name, which):
    loss, data = Loss(made(name)), wrong_at(which, name)
    params = {n: p.detach().clone().requires_grad_() for n, p in loss.named_parameters()}

    def value(params, *images):
        losses = functional_call(loss, params, (images[0], data[1], images[1], data[3]))
        return losses.sum(), losses

    (grads, *of_images), losses = torch.func.grad(value, (0, 1, 2), has_aux=True)(params, data[0], data[2])
    check_nan(which, losses, {n.removeprefix("learner."): g for n, g in grads.items()}, of_images)


@pytest.mark.parametrize("name", ["MAML", "MAML (convolutions)", "ProtoMAML", "LEO", "ProtoNet", "MatchingNet"])
def test_a_wrong_label_of_a_compiled_loss_gives_nan(name):
    """Compiled once, for support and query: a learner of each way to look at labels."""
    torch._dynamo.reset()
    learner = made(name)
    compiled, params = torch.compile(learner.loss, fullgraph=True, backend="eager"), [*learner.parameters()]
    for which in (1, 3):
        sx, sy, qx, qy = wrong_at(which, name)
        images = [sx.requires_grad_(), qx.requires_grad_()]
        losses = compiled(sx, sy, qx, qy)
        grads = torch.autograd.grad(losses.sum(), [*params, *images], allow_unused=True)
        by_name = dict(zip((n for n, _ in learner.named_parameters()), grads, strict=False))
        check_nan(which, losses, by_name, grads[len(params) :])


@pytest.mark.parametrize(
    "name", ["MAML (any module)", "Reptile (any module)", "IMAML (any module)", "ProtoMAML", "MAML", "IMAML"]
)
@pytest.mark.parametrize("which", [1, 3])
@pytest.mark.parametrize("at_once", [1, 2])
def test_on_a_device_that_would_have_to_wait(name, which, at_once, monkeypatch):
    """The general engine as it runs on CUDA: nothing is read, NaN in the loss and in the gradient."""
    monkeypatch.setattr(_check, "visible", lambda x: False)
    for function in ("refuse_label_out_of_range", "refuse_empty_class"):
        monkeypatch.setattr(_check, function, lambda *args: None)
    force_tasks_at_once(monkeypatch, at_once)
    learner, data = made(name), wrong_at(which, name)
    with fastmeta.backend("reference"):
        losses = learner.loss(*data)
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True]
    if which == 1 or "Reptile" not in name:  # whose gradient does not depend on the query
        assert all(p.grad.isnan().any() for p in learner.parameters())


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
