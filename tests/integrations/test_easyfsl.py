"""easyfsl's names one by one: scores, hooks, and errors."""

import pytest
import torch

from fastmeta.integrations import accelerate
from fastmeta.integrations import easyfsl as ours
from harness.installed_peers import peer
from harness.programs import encoder, episode


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
    with pytest.raises(AttributeError, match=r"easyfsl.methods: the name must be one .* got NoSuchNetworks"):
        ours.methods.NoSuchNetworks  # noqa: B018


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
