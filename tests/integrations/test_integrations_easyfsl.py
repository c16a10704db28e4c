"""Programs in easyfsl's language, on plain PyTorch, on fastmeta.integrations, on easyfsl, and on it accelerated."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import easyfsl as ours
from harness.installed_peers import peer
from harness.programs import WAYS, assert_same, encoder, episode, losses_of, protonet_by_hand, trained

FEATURES = 8


def protonet(easyfsl, **options):
    model = easyfsl.methods.PrototypicalNetworks(encoder(), **options)
    model.train()

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        model.process_support_set(support_x, support_y)
        return F.cross_entropy(model(query_x), query_y)

    return trained(model.parameters(), meta_loss)


def centred(easyfsl):
    """On unit features, around a point."""
    return protonet(easyfsl, feature_centering=torch.full((FEATURES,), 0.25).double(), feature_normalization=2.0)


class ByCosine:
    """A method of the user's own, on the class that easyfsl's methods share."""

    def forward(self, query_images):
        return self.softmax_if_specified(10 * self.cosine_distance_to_prototypes(self.compute_features(query_images)))


def own_method(easyfsl):
    model = type("Own", (ByCosine, easyfsl.methods.FewShotClassifier), {})(encoder())

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        model.process_support_set(support_x, support_y)
        return F.cross_entropy(model(query_x), query_y)

    return trained(model.parameters(), meta_loss)


def matching_net(easyfsl):
    model = easyfsl.methods.MatchingNetworks(encoder(), feature_dimension=FEATURES).double()

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        model.process_support_set(support_x, support_y)
        model.one_hot_support_labels = model.one_hot_support_labels.double()  # easyfsl makes them float32
        return F.nll_loss(model(query_x), query_y)

    return trained(model.parameters(), meta_loss)


def euclidean(query, centres):
    return -(query[:, None] - centres).square().sum(-1).sqrt()


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = encoder()

    def forward(self, x):
        x = self.body(x) - 0.25
        return x / x.square().sum(1, keepdim=True).sqrt()


def unit(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


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
        attention = (h @ unit(support).T).softmax(1)
        probabilities = torch.stack([attention[:, support_y == k].sum(1) for k in range(WAYS)], 1)
        return F.nll_loss((probabilities + 1e-6).log(), query_y)

    return trained([*body.parameters(), *both.parameters(), *cell.parameters()], meta_loss)


BY_HAND = {
    protonet: lambda: protonet_by_hand(encoder(), euclidean),
    centred: lambda: protonet_by_hand(Centred(), euclidean),
    own_method: lambda: protonet_by_hand(encoder(), lambda q, c: 10 * unit(q) @ unit(c).T),
    matching_net: matching_by_hand,
}
every_program = pytest.mark.parametrize("program", BY_HAND, ids=lambda program: program.__name__)


@every_program
def test_program_on_plain_pytorch(program):
    assert_same(losses_of(program, ours), BY_HAND[program]())


@every_program
def test_program_on_the_peer(program):
    assert_same(losses_of(program, ours), losses_of(program, peer("easyfsl")))


@every_program
def test_accelerated_program(program):
    easyfsl = peer("easyfsl")
    classifier = easyfsl.methods.few_shot_classifier
    means = classifier.compute_prototypes
    with accelerate(easyfsl):
        assert classifier.compute_prototypes is ours.methods.utils.compute_prototypes
        assert_same(program(easyfsl), losses_of(program, ours))
    assert classifier.compute_prototypes is means


@pytest.mark.parametrize("use_softmax", [False, True])
@pytest.mark.parametrize("name", ["PrototypicalNetworks", "MatchingNetworks"])
def test_scores_checkpoints_and_repr_are_those_of_the_peer(name, use_softmax):
    easyfsl = peer("easyfsl")
    options = {"feature_dimension": 6} if name == "MatchingNetworks" else {}
    theirs = getattr(easyfsl.methods, name)(use_softmax=use_softmax, **options)
    model = getattr(ours.methods, name)(use_softmax=use_softmax, **options)
    assert repr(model) == repr(theirs)
    model.load_state_dict(theirs.state_dict())
    support_x, support_y, query_x, _ = (t.float() if t.is_floating_point() else t for t in episode())
    support_x[support_y == 0], query_x[0] = 0, 0  # zero vectors, one on a prototype
    for found in (model, theirs):
        found.process_support_set(support_x, support_y)
    expected = theirs(query_x)
    torch.testing.assert_close(model(query_x), expected)
    with accelerate(easyfsl):
        torch.testing.assert_close(theirs(query_x), expected)
    assert model.is_transductive() is theirs.is_transductive() is False


def test_a_support_example_that_is_zero():
    """Its attention is that of <x, 0> = 0."""
    model = ours.methods.MatchingNetworks(feature_dimension=2)
    model.encode_support_features = model.encode_query_features = lambda features: features
    model.process_support_set(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    attention = torch.tensor([0.0, 3.0]).softmax(0)
    torch.testing.assert_close(model(torch.tensor([[3.0, 1.0]])), (attention + 1e-6).log()[None])


def test_errors():
    model = ours.methods.PrototypicalNetworks()
    with pytest.raises(ValueError, match=r"FewShotClassifier: features of n images must have the shape \[n, D\]"):
        model.process_support_set(torch.ones(2, 3, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="MatchingNetworks: features must have 3 dimensions, got 4"):
        ours.methods.MatchingNetworks(feature_dimension=3).process_support_set(torch.ones(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="prototypes: every class must have a support example, got none of class 1"):
        model.process_support_set(torch.ones(2, 3), torch.tensor([0, 2]))
    with pytest.raises(NotImplementedError, match="FewShotClassifier: forward must be written"):
        ours.methods.FewShotClassifier()(torch.ones(2, 3))
    with pytest.raises(NotImplementedError, match="FewShotClassifier: is_transductive must be written"):
        ours.methods.FewShotClassifier.is_transductive()
    for name, value, kind in (("backbone", 3, "a torch.nn.Module"), ("feature_centering", 0.5, "a tensor")):
        with pytest.raises(TypeError, match=f"PrototypicalNetworks: {name} must be {kind}, got"):
            ours.methods.PrototypicalNetworks(**{name: value})
    with pytest.raises(TypeError, match="compute_prototypes: support_labels must be a tensor, got list"):
        ours.methods.PrototypicalNetworks().process_support_set(torch.ones(2, 3), [0, 1])
    for model in (ours.methods.PrototypicalNetworks(), ours.methods.MatchingNetworks(feature_dimension=3)):
        with pytest.raises(RuntimeError, match="process_support_set.* must come first, got none"):
            model(torch.ones(2, 3))
    with pytest.raises(AttributeError, match=r"easyfsl.methods: the name must be one .* got SimpleShot"):
        ours.methods.SimpleShot  # noqa: B018


def subclass_of(easyfsl):
    """As public programs write one: the library's own hooks, called and overridden."""

    class Rectified(easyfsl.methods.few_shot_classifier.FewShotClassifier):
        def process_support_set(self, support_images, support_labels):
            self.support_labels = support_labels
            self.support_features = self.compute_features(support_images)
            self._raise_error_if_features_are_multi_dimensional(self.support_features)
            self.prototypes = easyfsl.methods.utils.compute_prototypes(self.support_features, support_labels)

        def forward(self, query_images):
            features = self.compute_features(query_images)
            self._raise_error_if_features_are_multi_dimensional(features)
            self.prototypes = self.prototypes + features.mean(0) - self.support_features.mean(0)
            return self.softmax_if_specified(self.l2_distance_to_prototypes(features), temperature=2.0)

    return Rectified


def test_subclasses_that_call_the_hooks_of_the_library():
    found = []
    for easyfsl in (ours, peer("easyfsl")):
        support_x, support_y, query_x, _ = episode()
        model = subclass_of(easyfsl)(encoder(), use_softmax=True)
        torch.manual_seed(0)
        support_x, support_y, query_x, _ = episode()
        model.process_support_set(support_x, support_y)
        found.append(model(query_x))
    torch.testing.assert_close(*found)


def test_a_hook_that_lets_feature_maps_pass():
    class Maps(ours.methods.FewShotClassifier):
        @staticmethod
        def _raise_error_if_features_are_multi_dimensional(features):
            pass

    model = Maps()
    model.process_support_set(torch.ones(4, 2, 3, 3), torch.tensor([0, 1, 1, 0]))
    assert model.prototypes.shape == (2, 2, 3, 3)
