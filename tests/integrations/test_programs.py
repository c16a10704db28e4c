"""Programs in the languages of learn2learn, higher, TorchOpt and easyfsl: on fastmeta.integrations they train as in plain PyTorch, as on
the library, and as on the library accelerated."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.integrations import accelerate, easyfsl, higher, learn2learn, torchopt
from harness.installed_peers import peer
from harness.programs import (  # noqa: F401  (a fixture)
    TASKS,
    assert_same,
    cosine,
    encoder,
    episode,
    euclidean,
    maml_by_hand,
    meta_trained,
    minus_squares,
    net,
    on_units,
    protonet_by_hand,
    size_fixture,
    trained,
    unit_cosine,
    waves,
)

FEATURES = 8


def adapted(clone, support_x, support_y, query_x, query_y):
    for _ in range(2):
        clone.adapt(F.mse_loss(clone(support_x), support_y))
    return F.mse_loss(clone(query_x), query_y)


def l2l_maml(l2l, **options):
    learner = l2l.algorithms.MAML(net(), lr=0.05, **options)
    return meta_trained(learner.parameters(), lambda *task: adapted(learner.clone(), *task))


def l2l_meta_sgd(l2l):
    learner = l2l.algorithms.MetaSGD(net(), lr=0.05)
    return meta_trained(learner.parameters(), lambda *task: adapted(learner.clone(), *task))


def by_updates(l2l, update):
    """The low-level form: clone_module, torch.autograd.grad, an update function."""
    model = net()

    def query_loss(support_x, support_y, query_x, query_y):
        clone = l2l.clone_module(model)
        for _ in range(2):
            loss = F.mse_loss(clone(support_x), support_y)
            clone = update(clone, torch.autograd.grad(loss, clone.parameters(), create_graph=True))
        return F.mse_loss(clone(query_x), query_y)

    return meta_trained(model.parameters(), query_loss)


def l2l_maml_update(l2l):
    return by_updates(l2l, lambda clone, grads: l2l.algorithms.maml.maml_update(clone, 0.05, grads))


def l2l_meta_sgd_update(l2l):
    rates = [torch.full_like(p, 0.05) for p in net().parameters()]
    return by_updates(l2l, lambda clone, grads: l2l.algorithms.meta_sgd_update(clone, rates, grads))


def l2l_update_module(l2l):
    return by_updates(l2l, lambda clone, grads: l2l.update_module(clone, updates=[-0.05 * g for g in grads]))


def l2l_protonet(l2l, **options):
    model = encoder()

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        classifier = l2l.nn.PrototypicalClassifier(**options)
        classifier.fit_(model(support_x), support_y)
        return F.cross_entropy(classifier(model(query_x)), query_y)

    return trained(model.parameters(), meta_loss)


def higher_maml(library, learned=False):
    """`learned`: a rate for each parameter, by `override`."""
    model = net()
    inner = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.05)
    rates = [nn.Parameter(torch.full_like(p, 0.05)) for p in model.parameters()] if learned else []
    options = {"copy_initial_weights": False, "override": {"lr": rates} if learned else None}

    def query_loss(support_x, support_y, query_x, query_y):
        with library.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(F.mse_loss(fmodel(support_x), support_y))
            return F.mse_loss(fmodel(query_x), query_y)

    return meta_trained([*model.parameters(), *rates], query_loss)


def higher_initial_weights(library):
    """The copy's own leaves, whose gradients are carried to the model by hand."""
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.05)

    def meta_loss():
        total, summed = 0, [torch.zeros_like(p) for p in model.parameters()]
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            with library.innerloop_ctx(model, inner) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.mse_loss(fmodel(support_x), support_y))
                loss = F.mse_loss(fmodel(query_x), query_y) / TASKS
                grads = torch.autograd.grad(loss, fmodel.parameters(time=0))
                summed = [s + g for s, g in zip(summed, grads, strict=True)]
                total = total + loss.detach()
        straight = sum((p * g).sum() for p, g in zip(model.parameters(), summed, strict=True))
        return total + straight - straight.detach()

    return trained(model.parameters(), meta_loss)


def torchopt_maml(library, parts=1):
    """`parts` of 2: body and head are groups of one optimiser."""
    model = net()
    inner = library.MetaSGD(model if parts == 1 else model[:2], lr=0.05)
    if parts == 2:
        inner.add_param_group(model[2:])

    def meta_loss():
        total, start = 0, [library.extract_state_dict(part, by="reference") for part in (model, inner)]
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            for _ in range(2):
                inner.step(F.mse_loss(model(support_x), support_y))
            total = total + F.mse_loss(model(query_x), query_y)
            for part, state in zip((model, inner), start, strict=True):
                library.recover_state_dict(part, state)
        return total / TASKS

    return trained(list(model.parameters()), meta_loss)


def classified(model, loss=F.cross_entropy, double=False):
    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        model.process_support_set(support_x, support_y)
        if double:  # easyfsl makes them float32
            model.one_hot_support_labels = model.one_hot_support_labels.double()
        return loss(model(query_x), query_y)

    return trained(model.train().parameters(), meta_loss)


def easyfsl_protonet(library):
    return classified(library.methods.PrototypicalNetworks(encoder()))


def easyfsl_centred(library):
    """On unit features, around a point."""
    options = {"feature_centering": torch.full((FEATURES,), 0.25).double(), "feature_normalization": 2.0}
    return classified(library.methods.PrototypicalNetworks(encoder(), **options))


class ByCosine:
    """A method of the user's own, on the class that easyfsl's methods share."""

    def forward(self, query_images):
        return self.softmax_if_specified(10 * self.cosine_distance_to_prototypes(self.compute_features(query_images)))


def easyfsl_own_method(library):
    return classified(type("Own", (ByCosine, library.methods.FewShotClassifier), {})(encoder()))


def easyfsl_matching_net(library):
    model = library.methods.MatchingNetworks(encoder(), feature_dimension=FEATURES).double()
    return classified(model, F.nll_loss, double=True)


def matching_by_hand():
    """The LSTMs by their gates."""
    body = encoder()
    both, cell = nn.LSTM(FEATURES, FEATURES, bidirectional=True).double(), nn.LSTMCell(2 * FEATURES, FEATURES).double()

    def lstm(x, h, c, weights):
        of_input, of_state, bias, other_bias = weights
        i, f, g, o = (x @ of_input.T + h @ of_state.T + bias + other_bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def along(rows, weights):
        h = c = torch.zeros(1, FEATURES).double()
        states = []
        for row in rows:
            h, c = lstm(row[None], h, c, weights)
            states.append(h)
        return states

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        support, query = body(support_x), body(query_x)
        ahead, back = along(support, both.all_weights[0]), along(support.flip(0), both.all_weights[1])[::-1]
        support = support + torch.cat(ahead) + torch.cat(back)
        h, c = query, torch.zeros_like(query)
        for _ in range(len(support)):
            read = (h @ support.T).softmax(1) @ support
            h, c = lstm(torch.cat([query, read], 1), h, c, list(cell.parameters()))
            h = h + query
        probabilities = (h @ F.normalize(support).T).softmax(1) @ F.one_hot(support_y).double()
        return F.nll_loss((probabilities + 1e-6).log(), query_y)

    return trained([*body.parameters(), *both.parameters(), *cell.parameters()], meta_loss)


of = functools.partial
PROGRAMS = {  # of each library: the program in its language, and in plain PyTorch
    "l2l inner loop": (learn2learn, l2l_maml, maml_by_hand),
    "l2l inner loop, first order": (learn2learn, of(l2l_maml, first_order=True), of(maml_by_hand, first_order=True)),
    "l2l inner loop, Meta-SGD": (learn2learn, l2l_meta_sgd, of(maml_by_hand, learned=True)),
    "l2l inner loop, maml_update": (learn2learn, l2l_maml_update, maml_by_hand),
    "l2l inner loop, meta_sgd_update": (learn2learn, l2l_meta_sgd_update, maml_by_hand),
    "l2l inner loop, update_module": (learn2learn, l2l_update_module, maml_by_hand),
    "l2l ProtoNet": (learn2learn, l2l_protonet, of(protonet_by_hand, minus_squares)),
    "l2l cosine": (learn2learn, of(l2l_protonet, distance="cosine"), of(protonet_by_hand, unit_cosine)),
    "l2l on units": (learn2learn, of(l2l_protonet, normalize=True), of(protonet_by_hand, on_units)),
    "higher inner loop": (higher, higher_maml, maml_by_hand),
    "higher inner loop, learned rates": (higher, of(higher_maml, learned=True), of(maml_by_hand, learned=True)),
    "higher inner loop, initial weights": (higher, higher_initial_weights, maml_by_hand),
    "torchopt inner loop": (torchopt, torchopt_maml, maml_by_hand),
    "torchopt inner loop, two modules": (torchopt, of(torchopt_maml, parts=2), maml_by_hand),
    "easyfsl ProtoNet": (easyfsl, easyfsl_protonet, of(protonet_by_hand, euclidean)),
    "easyfsl centred": (easyfsl, easyfsl_centred, of(protonet_by_hand, euclidean, centred=0.25)),
    "easyfsl own method": (easyfsl, easyfsl_own_method, of(protonet_by_hand, lambda q, c: 10 * cosine(q, c))),
    "easyfsl matching": (easyfsl, easyfsl_matching_net, matching_by_hand),
}
every_program = pytest.mark.parametrize("name", PROGRAMS)


@functools.cache
def losses_of(name, size):
    ours, program, _ = PROGRAMS[name]
    return program(ours)


@every_program
def test_as_plain_pytorch(name, size):
    assert_same(losses_of(name, size), PROGRAMS[name][2]())


@every_program
def test_as_the_library_and_the_library_accelerated(name, size):
    """The steps of small networks, and the meta-gradients through them, have the bits of the library's own."""
    ours, program, _ = PROGRAMS[name]
    library = peer(ours.__name__.rpartition(".")[2])
    expected = program(library)
    with accelerate(library):
        accelerated = program(library)
    for found in (losses_of(name, size), accelerated):
        assert_same(found, expected)
        assert found == expected or size == "large" or "inner loop" not in name


def test_recipe_on_plain_pytorch():
    """The inner loop of anybody's MAML, with one line of fastmeta in it; and all tasks at once."""
    model, other = net(), net()

    def query_loss(support_x, support_y, query_x, query_y):
        params = dict(model.named_parameters())
        for _ in range(2):
            loss = F.mse_loss(torch.func.functional_call(model, params, support_x), support_y)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = fastmeta.sgd_step(params, dict(zip(params, grads, strict=True)), 0.05)
        return F.mse_loss(torch.func.functional_call(model, params, query_x), query_y)

    learner = fastmeta.MAML(other, lr=0.05, steps=2, loss="mse")
    expected = maml_by_hand()
    assert_same(meta_trained(model.parameters(), query_loss), expected)
    assert_same(trained(other.parameters(), lambda: learner.loss(*waves()).mean()), expected)


@pytest.mark.parametrize("size", ["small"], indirect=True)
def test_a_step_is_rounded_twice(size):
    """p + (-lr g): what all three libraries write. One fused rounding has other bits somewhere in 500 elements."""
    torch.manual_seed(0)
    p, g = torch.randn(500), torch.randn(500)
    model = nn.ParameterList([p])
    for lr in (0.137, torch.tensor(0.137)):
        learn2learn.algorithms.maml_update(model, lr, [g])
        assert torch.equal(model[0], p + (-lr * g))
        model[0] = nn.Parameter(p)
