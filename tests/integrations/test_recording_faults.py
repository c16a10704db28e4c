"""Whatever happens between recording and the need of a value, recorded programs compute what they compute operation by operation."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import explain
from fastmeta.integrations.learn2learn.algorithms import MAML
from fastmeta.integrations.recording import report
from harness.recorded import TASKS, WAYS, adapted, alone, both, losses, net, summed, task, trained


def written_inputs(learner):
    """One buffer for the data of all tasks and steps, where PyTorch asks for copies."""
    given = (lambda x: x) if report.ON else torch.clone
    total, buffers = 0, [torch.empty_like(x) for x in task()]
    for _ in range(TASKS):
        clone = learner.clone()
        for _ in range(2):
            for buffer, x in zip(buffers, task(), strict=True):
                buffer.copy_(x)
            clone.adapt(F.cross_entropy(clone(given(buffers[0])), given(buffers[1])))
        total = total + F.cross_entropy(clone(given(buffers[2])), given(buffers[3]))
    for buffer in buffers:
        buffer.zero_()
    total.backward()
    return [total]


def written_parameters(learner):
    """A value that is read, and a gradient that is taken, after the parameters were changed."""
    kept, other = losses(learner), losses(learner)
    first, second = next(kept), next(other)
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(0.9)
    second.backward()
    return [first.item(), second.item()]


def data_of_parameters(learner):
    """Writes that no version counts, as old programs do after a way back."""
    found = alone(learner)
    for p in learner.parameters():
        p.data.sub_(0.1 * p.grad)
    return found + alone(learner)


def hooked(learner):
    """A hook that comes between two steps, on the layers that clones share their hooks with."""
    clone, seen = learner.clone(), []
    x, y, query_x, query_y = task()
    clone.adapt(F.cross_entropy(clone(x), y))
    handle = learner.module[0].register_forward_hook(lambda *found: seen.append(1) or 2 * found[2])
    clone.adapt(F.cross_entropy(clone(x), y))
    loss = F.cross_entropy(clone(query_x), query_y)
    handle.remove()
    loss.backward()
    return [loss, len(seen)]


def of_parameters(learner):
    """Parameters of a clone, asked for after steps, and gradients to them."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 2)
    loss = F.cross_entropy(clone(query_x), query_y)
    first, *_ = params = list(clone.parameters())
    grads = torch.autograd.grad(loss, params, retain_graph=True)
    (loss + first.square().sum()).backward()
    return [loss, sum(g.sum() for g in grads)]


def early_loss(learner):
    """Losses counted at every step, an outer loss of support outputs, steps on scaled losses."""
    total = 0
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        clone = learner.clone()
        for k in range(3):
            total = total + (k + 1) * F.cross_entropy(clone(query_x), query_y) / 6
            loss = F.cross_entropy(clone(x), y)
            total = total - 0.1 * (loss.detach() if learner.first_order else loss)  # whose graph is gone then
            clone.adapt(loss / 2)
            step = F.cross_entropy(clone(x), y)
            step /= 4
            clone.adapt(step)
    total.backward()
    return [total]


def interleaved(learner):
    one, two = learner.clone(), learner.clone()
    (x, y, query_x, query_y), (x2, y2, *_) = task(), task()
    loss, other = F.cross_entropy(one(x), y), F.cross_entropy(two(x2), y2)
    one.adapt(loss)
    two.adapt(other)
    one.adapt(other + F.cross_entropy(one(x2), y2))  # of both
    total = F.cross_entropy(one(query_x), query_y) + F.cross_entropy(two(query_x), query_y)
    total.backward()
    return [total, loss, other]


def of_many_kinds(learner):
    """Every other thing that programs do with losses and outputs."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 1)
    outputs = clone(query_x)
    loss = F.cross_entropy(outputs, query_y)
    total = loss
    total += F.cross_entropy(clone(x), y)  # loss too
    probabilities = outputs.softmax(1)
    detached = loss.detach()
    found = [
        loss,
        f"{loss:.6f}" > "",
        float(loss),
        loss > 0,
        loss.detach() + 1,
        len(outputs),
        outputs[0, 0],
        detached * 2,
    ]
    found += [
        torch.isfinite(loss),
        outputs.max(1)[1][0],
        torch.topk(outputs, 2).values[0, 1],
        outputs.view(-1)[1],
        *outputs.shape,
    ]
    assert (
        isinstance(loss, torch.Tensor) and repr(loss) and loss.dim() == 0 and loss.numel() == 1 and loss.requires_grad
    )
    assert (
        outputs.dtype == torch.float64 and outputs.size(1) == WAYS and outputs.device == x.device and not loss.is_leaf
    )
    loss.backward(retain_graph=True)
    (total + probabilities.square().sum() + torch.exp(loss)).backward()
    return found


def copies(learner):
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 1)
    outputs = clone(query_x).detach()
    again = pickle.loads(pickle.dumps(copy.deepcopy(learner))).clone()
    assert pickle.loads(pickle.dumps(learner)).module[0].weight.equal(learner.module[0].weight)
    twice = adapted(adapted(again, x, y, 1).clone(), x, y, 1)
    assert type(clone.clone()).__name__ in ("MAML", "RecordedMAML") and "Linear" in repr(clone)
    loss = F.cross_entropy(clone(query_x), query_y) + F.cross_entropy(twice(query_x), query_y).detach()
    loss.backward()
    return [loss, outputs]


def without_grad(learner):
    """Evaluation under no_grad, alone and with what was recorded in grad mode."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 2)
    recorded = F.cross_entropy(clone(query_x), query_y)
    with torch.no_grad():
        loss = F.cross_entropy(clone(query_x), query_y)
        doubled = recorded * 2 + 1
        assert not loss.requires_grad
    recorded.backward()
    return [loss, doubled]


def twice_back(learner):
    """The second way back through a graph is an error."""
    first = next(losses(learner))
    total = first + next(losses(learner))
    total.backward()
    for again in (total, first, total * 2, first.exp()):
        with pytest.raises(RuntimeError, match="second time"):
            again.backward()
    return [total, first, total * 2]


def clones_without_grad(learner):
    """A clone that is made, or steps, where nothing has a graph."""
    x, y, query_x, query_y = task()
    with torch.no_grad():
        first = learner.clone()
        assert not F.cross_entropy(first(x), y).requires_grad
    clone = learner.clone()
    loss = F.cross_entropy(clone(x), y)
    with torch.no_grad():
        clone.adapt(loss)
    value = F.cross_entropy(clone(query_x), query_y)
    with torch.inference_mode():
        outputs = learner.clone()(query_x)
    (F.cross_entropy(adapted(learner.clone(), x, y, 1)(query_x), query_y).mean().clone() * 2).backward()
    return [value, outputs.sum()]


def nothing_counts(learner):
    """Targets that are all ignored: the mean of nothing."""
    x, y, query_x, query_y = task()
    query_y[:3] = -100
    loss = F.cross_entropy(adapted(learner.clone(), x, y, 1)(query_x), query_y)
    loss.backward()
    nothing = F.cross_entropy(learner.clone()(query_x), torch.full_like(query_y, -100))
    return [loss, torch.isnan(nothing)]


def hooks_on_gradients(learner):
    """They come after a clone was made."""
    kept = losses(learner)
    loss, seen = next(kept), []
    handles = [p.register_hook(lambda g: seen.append(1) or 2 * g) for p in learner.parameters()]
    handles.append(learner.module[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(1)))
    loss.backward()
    for handle in handles:
        handle.remove()
    return [loss, len(seen)]


def of_features(learner):
    """ANIL: features of a body that is not adapted."""
    total = 0.0
    body = learner.module.body if hasattr(learner.module, "body") else BODY
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        clone = adapted(learner.clone(), body(x), y, 2)
        total = total + F.cross_entropy(clone(body(query_x)), query_y)
    total.backward()
    found = [total, *(p.grad.clone() for p in body.parameters())]
    body.zero_grad()
    return found


def of_features_that_share_a_graph(learner):
    """Losses after other numbers of steps on features of one pass, which are seen without grad first."""
    x, y, query_x, query_y = task()
    support, query = BODY(torch.cat([x, query_x])).split(len(x))
    total = 0
    for steps in (0, 1, 2, 1):
        clone = adapted(learner.clone(), support, y, steps)
        with torch.no_grad():
            seen = clone(query).sum()
        total = total + (1 + steps) * F.cross_entropy(clone(query), query_y)
    total.backward()
    found = [total, seen, *(p.grad.clone() for p in BODY.parameters())]
    BODY.zero_grad()
    return found


torch.manual_seed(2)
BODY = nn.Linear(3, 3).double()
FAULTS = (
    written_inputs, written_parameters, data_of_parameters, hooked, of_parameters, early_loss, interleaved, of_many_kinds, copies,
    without_grad, clones_without_grad, twice_back, nothing_counts, hooks_on_gradients, of_features, of_features_that_share_a_graph,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("first_order", [False, True])
def test_faults(monkeypatch, fault, first_order):
    both(monkeypatch, lambda: trained(MAML(net(), 0.1, first_order=first_order), fault, 2))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, WAYS)).double(),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.RReLU(), nn.Linear(6, WAYS)).double(),
    ],
)
def test_models_that_are_not_recorded(monkeypatch, model):
    """They draw numbers: everything is computed when the program says so."""
    torch.manual_seed(0)
    kept = copy.deepcopy(model().state_dict())

    def program():
        learner = MAML(model(), 0.1)
        learner.module.load_state_dict(kept)
        found = trained(learner, summed)
        return found + [b.clone() for b in learner.buffers()]

    assert {*both(monkeypatch, program)} == {"plain"}


def test_wrong_labels_and_shapes_are_the_models_errors():
    learner = MAML(net(), 0.1)
    x, y, *_ = task()
    with pytest.raises(IndexError, match="out of bounds"):
        F.cross_entropy(learner.clone()(x), y + WAYS).backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.clone()(x[:, :2])
    assert "Sequential" in str(explain())
