"""learn2learn's names one by one: what a clone and an update are, the small helpers, and errors."""

import copy
import pickle
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate, higher
from fastmeta.integrations import learn2learn as ours
from harness.installed_peers import peer
from harness.programs import episode, net, size_fixture  # noqa: F401  (a fixture)


class Tied(nn.Module):
    """A module and a parameter that are used twice, and buffers."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(3, 3, bias=False)
        self.again = self.twice
        self.other = nn.Linear(3, 3)
        self.other.weight = self.twice.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.other(self.norm(self.again(self.twice(x).tanh())))


def of_tied(params, x):
    weight, bias, *of_norm = params
    x = F.linear(F.linear(x, weight).tanh(), weight)
    return F.linear(F.batch_norm(x, None, None, *of_norm, training=True), weight, bias)


def of_lstm(model):
    def forward(params, x):
        names = [name for name, _ in model.named_parameters()]
        return torch.func.functional_call(model, dict(zip(names, params, strict=True)), x)[0]

    return forward


@pytest.mark.cpu  # cuDNN's LSTM has no second derivative
@pytest.mark.parametrize("kind", ["tied", "lstm"])
def test_clone_is_the_model_on_other_tensors(kind):
    model = (Tied() if kind == "tied" else nn.LSTM(3, 3)).double()
    forward = of_tied if kind == "tied" else of_lstm(model)
    call = (lambda m, x: m(x)) if kind == "tied" else (lambda m, x: m(x)[0])
    x, y = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    params = list(model.parameters())
    clone = ours.algorithms.MAML(model, lr=0.5).clone()
    clone.adapt(F.mse_loss(call(clone, x), y))
    grads = torch.autograd.grad(F.mse_loss(forward(params, x), y), params, create_graph=True)
    expected = F.mse_loss(forward([p - 0.5 * g for p, g in zip(params, grads, strict=True)], x), y)
    found = F.mse_loss(call(clone, x), y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, params), torch.autograd.grad(expected, params))


def test_clone_keeps_what_is_shared():
    model = Tied()
    learner = ours.algorithms.MAML(model, lr=0.5)
    clone = learner.clone()
    assert clone.twice is clone.again is not model.twice and clone.other.weight is clone.twice.weight
    clone.adapt(clone(torch.randn(6, 3)).square().sum())
    assert clone.other.weight is clone.twice.weight is not model.twice.weight
    assert clone.norm.running_mean is model.norm.running_mean  # as in learn2learn: the buffers are the model's
    assert model.norm.num_batches_tracked == 1


def test_a_patched_forward_is_the_clones():
    """A method put on the object is bound to it; on a clone it runs on the clone's parameters."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].forward = MethodType(lambda self, x: 2 * x @ self.weight, model[0])
    model.forward = MethodType(lambda self, x: self[0](x) + 1, model)
    for clone in (ours.clone_module(model), higher.monkeypatch(model)):
        x, weight = torch.randn(3, 2), clone[0].weight
        assert weight is not model[0].weight
        assert torch.autograd.grad(clone(x).sum(), weight)[0].any()
        torch.testing.assert_close(clone(x), 2 * x @ weight + 1)


def test_frozen_and_unused_parameters():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "frozen": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    learner = ours.algorithms.MAML(model, lr=1.0)
    clone = learner.clone(allow_nograd=True, allow_unused=True)
    loss = clone.module["frozen"](clone.module["used"](torch.ones(1, 2))).square().sum()
    clone.adapt(loss)
    assert not torch.equal(clone.module["used"].weight, model["used"].weight)
    for name in ("frozen", "unused"):
        assert torch.equal(clone.module[name].weight, model[name].weight)
    with pytest.raises(ValueError, match=r"MAML.adapt: every parameter must need a gradient, .* got frozen ones"):
        learner.clone().adapt(loss)
    with pytest.raises(RuntimeError, match="allow_unused"):
        learner.clone().adapt(loss, allow_nograd=True, allow_unused=False)


def test_rates_of_other_shapes_and_models_of_two_dtypes():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).double())
    params = list(model.parameters())
    grads = [torch.ones_like(p) for p in params]
    rates = [
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([2.0]),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor(0.25),
    ]
    clone = ours.algorithms.meta_sgd_update(ours.clone_module(model), rates, grads)
    for after, p, rate in zip(clone.parameters(), params, rates, strict=True):
        torch.testing.assert_close(after, p - rate)
    halved = ours.algorithms.maml_update(ours.clone_module(model), torch.tensor([0.5]), [*grads[:3], None])
    for after, p, by in zip(halved.parameters(), params, (0.5, 0.5, 0.5, 0.0), strict=True):
        torch.testing.assert_close(after, p - by)


def test_updates_in_attributes_and_detached_modules():
    model = nn.Linear(2, 2)
    clone = ours.clone_module(model)
    clone.weight.update = torch.ones(2, 2)
    assert ours.algorithms.maml_update(clone, lr=0.1) is clone
    torch.testing.assert_close(clone.weight, model.weight + 1)
    assert clone.weight.grad_fn is not None and clone.bias.grad_fn is not None
    ours.detach_module(clone, keep_requires_grad=True)
    assert clone.weight.is_leaf and clone.weight.requires_grad
    ours.detach_module(clone)
    assert not clone.weight.requires_grad and model.weight.requires_grad
    model.weight.grad, model.bias.grad = torch.ones(2, 2), torch.zeros(2)
    before = model.weight.detach().clone()
    updated = ours.algorithms.meta_sgd_update(model, [0.5, 0.5])
    torch.testing.assert_close(updated.weight, before - 0.5)


def test_errors():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="maml_update: grads must have one entry for each of the 2 parameters, got 1"):
        ours.algorithms.maml_update(model, 0.1, [torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="update_module: updates must have one entry .* got 0"):
        ours.update_module(model, [])
    with pytest.raises(ValueError, match="meta_sgd_update: lrs must have one entry .* got 1"):
        ours.algorithms.meta_sgd_update(model, [0.1], [None, None])
    with pytest.raises(ValueError, match="PrototypicalClassifier: distance must be .* got 'manhattan'"):
        ours.nn.PrototypicalClassifier(distance="manhattan")
    with pytest.raises(RuntimeError, match=r"PrototypicalClassifier: fit_\(support, labels\) must come before"):
        ours.nn.PrototypicalClassifier()(torch.ones(3, 2))
    with pytest.raises(AttributeError):
        ours.algorithms.MAML(model, 0.1).nothing  # noqa: B018
    for name in ("MAML", "MetaSGD"):
        kind = getattr(ours.algorithms, name)
        with pytest.raises(TypeError, match=f"{name}: model must be a torch.nn.Module, got function"):
            kind(F.relu, 0.1)
        with pytest.raises(TypeError, match=f"{name}: lr must be a number or a tensor, got str"):
            kind(model, "0.1")
        with pytest.raises(TypeError, match=f"{name}.adapt: loss must be a tensor, got float"):
            kind(model, 0.1).adapt(1.0)
    with pytest.raises(
        ValueError, match=r"maml_update: grads\[1\] must have the shape of its parameter, got \[1\] for \[2\]"
    ):
        ours.algorithms.maml_update(model, 0.1, [None, torch.zeros(1)])
    with pytest.raises(TypeError, match=r"update_module: updates\[0\] must be a tensor, got float"):
        ours.update_module(model, [0.1, None])
    with pytest.raises(TypeError, match="update_module: updates must be a sequence, got float"):
        ours.update_module(model, 0.1)
    with pytest.raises(NotImplementedError, match="meta_sgd_update: lrs must be given, got none"):
        ours.algorithms.meta_sgd_update(model)
    for call in (ours.clone_module, ours.update_module, ours.detach_module, ours.nn.freeze, ours.nn.unfreeze):
        with pytest.raises(TypeError, match=f"{call.__name__}: module must be a torch.nn.Module, got int"):
            call(3)
    with pytest.raises(TypeError, match=r"clone_parameters: params\[0\] must be a tensor, got int"):
        ours.clone_parameters([3])
    with pytest.raises(TypeError, match="clone_named_parameters: params must be a dict, got list"):
        ours.clone_named_parameters([3])
    with pytest.raises(TypeError, match="compute_prototypes: labels must be a tensor, got list"):
        ours.nn.PrototypicalClassifier(torch.ones(2, 2), [0, 1])
    with pytest.raises(ValueError, match=r"accuracy: preds and targets must have the shapes \[n, N\] and \[n\]"):
        ours.accuracy(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeError, match="Lambda: lmb must be a function, got int"):
        ours.nn.Lambda(3)
    for module in (ours, ours.algorithms, ours.nn, ours.utils):
        with pytest.raises(
            AttributeError, match="the name must be one that fastmeta.integrations has .* got no_such_name"
        ):
            module.no_such_name  # noqa: B018


def test_memo_of_several_modules():
    """Body and head share a tensor: clones and updates keep that, as one memo for both says."""
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    head.weight = body.weight
    memo = {}
    clones = [ours.clone_module(part, memo=memo) for part in (body, head)]
    assert clones[0].weight is clones[1].weight is not body.weight and clones[0].bias is not clones[1].bias
    apart = [ours.clone_module(part) for part in (body, head)]
    assert apart[0].weight is not apart[1].weight
    memo, updates = {}, [torch.ones(2, 2), torch.ones(2)]
    for clone in clones:
        ours.update_module(clone, updates=updates, memo=memo)
    assert clones[0].weight is clones[1].weight
    torch.testing.assert_close(clones[1].weight, body.weight + 1)


def test_clones_hold_their_buffers_and_updates_reach_them():
    model = nn.BatchNorm1d(2)
    model.register_buffer("learned", torch.ones(2).requires_grad_())
    clone = ours.clone_module(model)
    assert clone.learned.grad_fn is not None and clone.running_mean is model.running_mean
    clone.learned.update = torch.ones(2)
    ours.update_module(clone, updates=[None, None])
    torch.testing.assert_close(clone.learned, torch.full((2,), 2.0))
    assert clone.weight.grad_fn is not None


def test_learners_of_the_users_own_copies_and_pickles():
    class Own(ours.algorithms.BaseLearner):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def clone(self):
            return Own(ours.clone_module(self.module))

    model = net()
    learner = Own(model)
    assert learner.clone().module[0].weight.grad_fn is not None
    assert learner.register_forward_hook and learner(torch.ones(1, 1).double()).shape == (1, 1)
    maml = ours.algorithms.MAML(model, lr=0.1)
    for again in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert again.lr == 0.1 and again.module[0].weight is not model[0].weight
        torch.testing.assert_close(again.state_dict(), maml.state_dict())
    assert ours.algorithms.BaseLearner().module is None
    with pytest.raises(AttributeError, match="nothing"):
        ours.algorithms.BaseLearner().nothing  # noqa: B018


def test_rates_of_a_clone_are_its_own():
    learner = ours.algorithms.MetaSGD(net(), lr=0.1)
    clone = learner.clone()
    assert clone.lrs[0].grad_fn is not None and clone.lrs[0] is not learner.lrs[0]


def test_what_learn2learn_keeps_beside():
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    torch.testing.assert_close(ours.magic_box(x), torch.ones(2))
    torch.testing.assert_close(torch.autograd.grad(ours.magic_box(x).sum(), x)[0], torch.ones(2))
    assert ours.magic_box(3) == 3
    assert ours.utils.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
    unit_rows = ours.nn.PrototypicalClassifier.normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(unit_rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert ours.nn.PrototypicalClassifier(normalize=True).normalize is True
    assert ours.nn.Flatten()(torch.ones(2, 3, 4)).shape == (2, 12)
    assert ours.nn.Lambda(torch.neg)(torch.ones(1)) == -1
    torch.testing.assert_close(ours.nn.Scale((2,), alpha=0.5)(torch.ones(2)), torch.full((2,), 0.5))
    model = ours.nn.freeze(nn.Linear(1, 1))
    assert not model.weight.requires_grad and ours.nn.unfreeze(model).weight.requires_grad
    for named in ({"w": x}, nn.ParameterDict({"w": x})):
        assert list(ours.clone_named_parameters(named)) == ["w"]


def test_an_accelerated_head_is_the_librarys_again_afterwards():
    l2l = peer("learn2learn")
    support_x, support_y, query_x, _ = episode()
    with accelerate(l2l):
        classifier = l2l.nn.PrototypicalClassifier(normalize=True)
    theirs = l2l.nn.PrototypicalClassifier(support_x, support_y, normalize=True)
    assert classifier._compute_prototypes is theirs._compute_prototypes
    classifier.fit_(support_x, support_y)
    torch.testing.assert_close(classifier(query_x), theirs(query_x), rtol=0, atol=0)


def test_scores_are_those_of_the_peer():
    """Not only the losses, which a shift of all scores would not change."""
    l2l = peer("learn2learn")
    support_x, support_y, query_x, _ = episode()
    labels = 10 * support_y + 3
    for options in ({}, {"normalize": True}, {"distance": "cosine"}, {"distance": lambda c, q: torch.cdist(q, c)}):
        expected = l2l.nn.PrototypicalClassifier(support_x, labels, **options)(query_x)
        torch.testing.assert_close(ours.nn.PrototypicalClassifier(support_x, labels, **options)(query_x), expected)
        with accelerate(l2l):
            torch.testing.assert_close(l2l.nn.PrototypicalClassifier(support_x, labels, **options)(query_x), expected)


@pytest.mark.parametrize("name", ["MAML", "MetaSGD"])
def test_checkpoints_and_repr_are_the_peers(name):
    theirs = getattr(peer("learn2learn").algorithms, name)(net(), lr=0.1)
    learner = getattr(ours.algorithms, name)(net(), lr=0.1)
    assert list(learner.state_dict()) == list(theirs.state_dict())
    assert repr(learner) == repr(theirs)
    learner.load_state_dict(theirs.state_dict())
