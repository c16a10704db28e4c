"""The scores of the heads have the digits of the libraries' own formulas: far classes, offsets, many classes, odd views."""

import pytest
import torch
import torch.nn.functional as F

from fastmeta.integrations import accelerate, easyfsl, learn2learn
from harness.installed_peers import peer

SHOTS, D = 3, 16


def far_first():
    """The first class is far from all queries, which lie near the others."""
    centres = torch.randn(5, D)
    centres[0] += 1e4
    return centres, centres[1:].repeat(4, 1) + 0.05 * torch.randn(16, D)


def shifted():
    centres = torch.randn(5, D) + 1e3
    return centres, centres.repeat(4, 1) + torch.randn(20, D)


def many():
    centres = torch.randn(3000, D)
    return centres, centres[:64] + 0.01 * torch.randn(64, D)


def tiny():
    centres = 1e-6 * torch.randn(5, D)
    return centres, centres.repeat(3, 1) + 1e-6 * torch.randn(15, D)


every_episode = pytest.mark.parametrize("made", [far_first, shifted, many, tiny], ids=lambda made: made.__name__)


def by_learn2learn(library, support, labels, query):
    classifier = library.nn.PrototypicalClassifier(support, labels)
    return classifier.prototypes, classifier(query)


def by_easyfsl(library, support, labels, query):
    model = library.methods.PrototypicalNetworks()
    model.process_support_set(support, labels)
    return model.prototypes, model(query)


HEADS = {"learn2learn": (by_learn2learn, learn2learn), "easyfsl": (by_easyfsl, easyfsl)}
every_head = pytest.mark.parametrize("name", HEADS)


def by_differences(name, means, query):
    """What the library says that its scores are: the squared distances, or their roots."""
    squares = (query[:, None] - means).square().sum(-1)
    return -squares if name == "learn2learn" else -squares.sqrt()


@every_episode
@every_head
def test_scores_and_gradients_have_all_digits(name, made):
    torch.manual_seed(0)
    centres, query = made()
    query.requires_grad_()
    head, library = HEADS[name]
    means, scores = head(library, centres.repeat(SHOTS, 1), torch.arange(len(centres)).repeat(SHOTS), query)
    exact_query = query.detach().double().requires_grad_()
    exact = by_differences(name, means.detach().double(), exact_query)
    own = by_differences(name, means, query)
    worst, of_own = (((found.double() - exact) / exact).abs().max() for found in (scores, own))
    assert worst <= 2 * of_own + torch.finfo().eps
    weights = torch.randn_like(scores)
    weights[:, 0] = 0  # the gradients too do not depend on the first class
    (slope,) = torch.autograd.grad((weights * scores).sum(), query)
    (expected,) = torch.autograd.grad((weights.double() * exact).sum(), exact_query)
    size = (weights * scores).detach().abs().sum(1).max()
    torch.testing.assert_close(slope.double(), expected, rtol=1e-4, atol=1e-6 * float(size))


@every_episode
@every_head
def test_accelerated_scores_have_the_digits_of_the_library(name, made):
    library = peer(name)
    torch.manual_seed(0)
    centres, query = made()
    labels = torch.arange(len(centres)).repeat(SHOTS)
    head, _ = HEADS[name]
    _, expected = head(library, centres.repeat(SHOTS, 1), labels, query)
    with accelerate(library):
        _, found = head(library, centres.repeat(SHOTS, 1), labels, query)
    exact = by_differences(name, centres.double(), query.double())
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_matching_scores_of_long_queries_and_soft_labels():
    """|x| = 1e4: the softmax sees products, not differences of squares; labels may be weights."""
    torch.manual_seed(0)
    model = easyfsl.methods.MatchingNetworks(feature_dimension=D)
    model.encode_support_features = model.encode_query_features = lambda features: features
    support, query = torch.randn(6, D), torch.randn(4, D)
    query[:, -1], support[:, -1] = 1e4, 1e-4
    for weights in (F.one_hot(torch.arange(6) % 3).float(), torch.rand(6, 3)):
        model.process_support_set(support, torch.arange(6) % 3)
        model.one_hot_support_labels = weights
        products = query.double() @ F.normalize(support.double()).T
        torch.testing.assert_close(model(query).double(), (products.softmax(1) @ weights.double() + 1e-6).log())


def test_views_that_are_not_what_lies_in_memory():
    """The negative bit of an imaginary part of a conjugate, strides of all kinds."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1])
    support = torch.randn(4, 3, dtype=torch.complex64).conj().imag
    query = torch.randn(3, 5).T
    for head, library in HEADS.values():
        means, scores = head(library, support, labels, query)
        expected_means, expected = head(library, support.clone(), labels, query.contiguous())
        torch.testing.assert_close(means, support.resolve_neg().view(2, 2, 3).mean(1))
        torch.testing.assert_close((means, scores), (expected_means, expected), rtol=0, atol=0)


def test_second_derivatives_of_few_rows():
    """torch.cdist has none for 5 x 5."""
    query, labels = torch.randn(5, 4).double().requires_grad_(), torch.arange(5)
    support = torch.randn(5, 4).double()
    for head, library in HEADS.values():
        assert torch.autograd.gradgradcheck(
            lambda q, head=head, library=library: head(library, support, labels, q)[1], query
        )


def test_prototypes_of_feature_maps():
    support, labels = torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 1, 0])
    expected = torch.stack([support[labels == k].mean(0) for k in range(2)])
    torch.testing.assert_close(easyfsl.methods.utils.compute_prototypes(support, labels), expected)
    torch.testing.assert_close(learn2learn.nn.compute_prototypes(support, labels + 7), expected)
