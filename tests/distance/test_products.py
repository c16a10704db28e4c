"""Many prototypes of many features: distances from products, by differences where these cancel (csrc/distance/cpu/squares.h)."""

import pytest
import torch

from fastmeta import _C, _ext
from harness.cases import randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import log_softmax, loss, metrics, temperature_for

Q, N, D = 37, 70, 83
SINGLE = torch.float32
ROUNDING = 2**-24


@pytest.fixture(params=_C.isas(), autouse=True)
def _isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield
    _C.set_isa(before)


def own(query, prototypes, spread):
    """Each query at one of the prototypes, so far from it."""
    return prototypes[torch.arange(Q) % N] + spread * query, prototypes


def at_the_edge(query, prototypes):
    """|q - c|^2 around half of |q - m|^2 + |c - m|^2, where differences take over, on either side."""
    sides = 1 - 2 * (torch.arange(N) % 2).to(SINGLE).unsqueeze(1)
    shared = torch.linspace(0.3, 0.7, Q).unsqueeze(1)
    axis = randn(D, dtype=SINGLE)
    return (shared.sqrt() * axis + (1 - shared).sqrt() * query) * sides[:Q], (axis + prototypes) * sides / 2**0.5


POINTS = {
    "normal": lambda q, c: (q, c),
    "offset": lambda q, c: (q + 1e4, c + 1e4),
    "duplicates": lambda q, c: own(q, c, 0),
    "duplicates and an offset": lambda q, c: own(q, c + 1e4, 0),
    "near duplicates": lambda q, c: own(q, c, 1e-3),
    "near duplicates and an offset": lambda q, c: own(q, c + 1e4, 1e-2),
    "edge": at_the_edge,
    "edge and an offset": lambda q, c: [x + 1e4 for x in at_the_edge(q, c)],
    "all near": lambda q, c: (q + 100, torch.cat([c[:6] - 1000, c[6:] + 100])),
    "one large feature": lambda q, c: [x * torch.tensor([100.0] + [1] * (D - 1)) for x in (q, c)],
    "all the same": lambda q, c: (torch.full_like(q, 0.1), torch.full_like(c, 0.1)),
}


def points(kind):
    return POINTS[kind](randn(Q, D, dtype=SINGLE), randn(N, D, dtype=SINGLE))


def squares(query, prototypes):
    """|q - c|^2 as the kernel finds it, [Q, N]."""
    return _ext.proto_log_softmax_fwd(query, prototypes, 1.0, "sqeuclidean", (True, True, False))[1][0]


@pytest.mark.cpu
@pytest.mark.parametrize("kind", POINTS)
def test_squares(kind):
    """Each pair's within 20 roundings, 0 of coincident points; 15 is what sums of so many squared differences have."""
    query, prototypes = points(kind)
    truth = (query.double().unsqueeze(1) - prototypes.double()).square().sum(-1)
    found = squares(query, prototypes).double()
    assert (found[truth == 0] == 0).all()
    assert ((found - truth).abs() <= 20 * ROUNDING * truth).all()


@pytest.mark.cpu
@metrics
@pytest.mark.parametrize("kind", ["normal", "edge", "all near", "near duplicates and an offset"])
def test_ops(kind, metric):
    targets = torch.arange(Q)
    targets[::5] = -100
    temperature = temperature_for(metric, D)
    for op in log_softmax(metric, temperature), loss(targets, metric=metric, temperature=temperature):
        check_against_reference(op, lambda: points(kind), "ext")


def by_differences(query, prototypes):
    return (query.unsqueeze(1) - prototypes).square().sum(-1)


@pytest.mark.cpu
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_number_beyond_all(value):
    """Spoils its own pairs alone, whichever side it is on, as a sum of squared differences does; and none where both have it."""
    for places in (0,), (1,), (0, 1):
        tensors = [x.clone() for x in points("duplicates")]
        for which in places:
            tensors[which][0, 5] = value
        torch.testing.assert_close(squares(*tensors), by_differences(*tensors), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.cpu
@pytest.mark.parametrize("scale", [1e-44, 1e-23, 1e-20, 1e17, (2.5e38 / D) ** 0.5, 1e20, 1e37])
def test_the_ends_of_float32(scale):
    """Denormal squares; squares that are finite where |q - m|^2 + |c - m|^2 is not; and none that is."""
    tensors = [x * scale for x in points("edge")]
    torch.testing.assert_close(squares(*tensors), by_differences(*tensors), rtol=1e-5, atol=1e-42)


@pytest.mark.cpu
def test_no_bit_depends_on_threads_or_on_the_other_queries():
    for kind in ("normal", "edge"):
        query, prototypes = points(kind)
        check_threads(
            lambda of=(query, prototypes): values_and_grads(log_softmax("euclidean"), [x.repeat(9, 1) for x in of])
        )
        for q in (0, 19, Q - 1):
            assert torch.equal(squares(query[q : q + 1], prototypes)[0], squares(query, prototypes)[q])
