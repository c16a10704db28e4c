"""The ways of others from queries [..., Q, D] and prototypes [..., N, D] to distances [..., Q, N], and what the distance ops are
timed on; one task has no task axis."""

import torch
import torch.nn.functional as F

from measure.contenders import compiled, imported

METRICS = ("euclidean", "sqeuclidean")
SHAPES = [
    (1, 75, 5, 64),
    (1, 75, 5, 1600),
    (32, 75, 5, 640),
    (1, 300, 60, 64),
    (1, 4096, 1000, 512),
    (32, 75, 20, 64),
    (1, 1000, 200, 100),
]  # T, Q, N, D


def by_cdist(query, prototypes, metric):
    """What easyfsl computes."""
    d = torch.cdist(query, prototypes)
    return d if metric == "euclidean" else d.square()


def by_mm(query, prototypes, metric):
    """|q|^2 + |c|^2 - 2 q c, with the prototypes' mean taken off first, so that an offset of all features costs no digits."""
    centre = prototypes.mean(-2, keepdim=True)
    q, c = query - centre, prototypes - centre
    square = q.square().sum(-1, keepdim=True) + c.square().sum(-1).unsqueeze(-2) - 2 * q @ c.mT
    return square if metric == "sqeuclidean" else square.clamp(min=1e-12).sqrt()


def by_naive(query, prototypes, metric):
    """By differences, as learn2learn's PrototypicalClassifier does."""
    square = (query.unsqueeze(-2) - prototypes.unsqueeze(-3)).square().sum(-1)
    return square if metric == "sqeuclidean" else square.sqrt()


def tasks(T, *core):
    """A shape with its task axis, where there is more than one task."""
    return (T, *core) if T > 1 else core


def eager_ways(T, Q, N, D):
    """By name; without the naive one where its differences are too large."""
    return {"cdist": by_cdist, "mm": by_mm} | ({"naive": by_naive} if fits(T, Q, N, D) else {})


def contenders(of_distances, shape, metric):
    """{name: eager way} and {name: way that is compiled first} from queries and prototypes to `log_softmax` or `loss`."""
    temperature = temperature_for(metric, shape[-1])

    def by(way):
        return lambda query, prototypes: of_distances(way, query, prototypes, metric, temperature)

    eager = {name: by(way) for name, way in eager_ways(*shape).items()}
    made = {f"compiled {name}": compiled(way) for name, way in eager.items()}
    return eager | {name: by(way) for name, way in by_library(metric, *shape).items()}, made


def fits(T, Q, N, D):
    """Whether the differences [T, Q, N, D] take at most 1 GiB."""
    return 4 * T * Q * N * D <= 2**30


def temperature_for(metric, D):
    """One that keeps the logits of normal features near 1."""
    return 2.0 * D if metric == "sqeuclidean" else 1.0


def log_softmax(way, query, prototypes, metric, temperature):
    return (-way(query, prototypes, metric) / temperature).log_softmax(-1)


def loss(way, query, prototypes, metric, temperature, targets):
    logits = -way(query, prototypes, metric) / temperature
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def loss_by_keops(query, prototypes, metric, temperature, targets):
    """Its lazy distances reduced to the log of the normaliser; the target's distance by differences."""
    LazyTensor = imported("pykeops.torch").LazyTensor
    if query.ndim == 2:
        query, prototypes, targets = query.unsqueeze(0), prototypes.unsqueeze(0), targets.unsqueeze(0)
    square = ((LazyTensor(query.unsqueeze(-2)) - LazyTensor(prototypes.unsqueeze(-3))) ** 2).sum(-1)
    of_target = (query - prototypes.gather(1, targets.unsqueeze(-1).expand_as(query))).square().sum(-1)
    if metric == "euclidean":
        square, of_target = square.sqrt(), of_target.sqrt()
    return ((-square / temperature).logsumexp(dim=2).squeeze(-1) + of_target / temperature).mean()


def by_library(metric, T, Q, N, D):
    """{name: way}: the few-shot library that has this metric, task by task as it must be called, if it can be imported."""
    module, name = {
        "euclidean": ("easyfsl.methods", "PrototypicalNetworks"),
        "sqeuclidean": ("learn2learn.nn.protonet", "PrototypicalClassifier"),
    }[metric]
    if (library := imported(module)) is None or not fits(1, Q, N, D):
        return {}
    head = getattr(library, name)()

    def of_one_task(query, prototypes):
        head.prototypes = prototypes
        return -head(query)

    def way(query, prototypes, metric):
        if query.ndim == 2:
            return of_one_task(query, prototypes)
        return torch.stack([of_one_task(q, c) for q, c in zip(query, prototypes, strict=True)])

    return {module.partition(".")[0]: way}
