"""Prints a markdown table: errors of the distance ops in float32 against float64, here and in every eager way."""

import torch
import torch.nn.functional as F

import fastmeta
from measure import distances

SIZES = [(75, 5, 64), (256, 100, 64)]  # Q, N, D
METRICS = (*distances.METRICS, "cosine")
DRAWS = 8
WAYS = ("ext", "reference", "cdist", "mm", "naive")


def offset(by):
    def change(query, prototypes, targets):
        return query + by, prototypes + by, targets

    return change


def outliers(query, prototypes, targets):
    """One query and one prototype 1e2 away."""
    query[0] += _away(query, 1e2)
    prototypes[0] += _away(query, 1e2)
    return query, prototypes, targets


def cluster(query, prototypes, targets):
    """Ten prototypes (or all but two) and ten queries of theirs, within 1 of each other, 1e3 away from the rest."""
    n = min(10, len(prototypes) - 2)
    centre = _away(query, 1e3)
    for x in (prototypes[:n], query[:10]):
        x.copy_(centre + 0.5 * F.normalize(x, dim=-1))
    return query, prototypes, torch.cat([targets[:10] % n, n + targets[10:] % (len(prototypes) - n)])


def _away(query, distance):
    return distance * F.normalize(torch.randn(query.shape[-1]), dim=0)


CASES = {
    "normal": offset(0.0),
    "offset 1e2": offset(1e2),
    "offset 1e4": offset(1e4),
    "outliers": outliers,
    "far cluster": cluster,
}


def loss_and_gradients(way, query, prototypes, targets, metric):
    """None where the way has no such metric."""
    query, prototypes = query.clone().requires_grad_(), prototypes.clone().requires_grad_()
    temperature = distances.temperature_for(metric, query.shape[-1])
    if way in ("ext", "reference"):
        with fastmeta.backend(way):
            loss = fastmeta.proto_loss(query, prototypes, targets, metric=metric, temperature=temperature)
    elif metric != "cosine":
        logits = -distances.eager_ways(1, 1, 1, 1)[way](query, prototypes, metric) / temperature
        loss = F.cross_entropy(logits, targets)
    elif way == "mm":
        cosines = F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).mT
        loss = F.cross_entropy((cosines - 1) / temperature, targets)
    elif way == "naive":
        cosines = F.cosine_similarity(query.unsqueeze(-2), prototypes.unsqueeze(-3), dim=-1)
        loss = F.cross_entropy((cosines - 1) / temperature, targets)
    else:
        return None
    return loss.detach(), *torch.autograd.grad(loss, (query, prototypes))


def errors(size, metric, case):
    """{way: RMS of the error over RMS of the truth, over all draws, of the loss, dquery, dprototypes}."""
    Q, N, D = size
    torch.manual_seed(0)
    draws = [CASES[case](torch.randn(Q, D), torch.randn(N, D), torch.randint(0, N, (Q,))) for _ in range(DRAWS)]
    truth = [loss_and_gradients("reference", q.double(), c.double(), y, metric) for q, c, y in draws]
    found = {way: [loss_and_gradients(way, *draw, metric) for draw in draws] for way in WAYS}
    return {way: [_relative(of, truth, i) for i in range(3)] for way, of in found.items() if of[0] is not None}


def _relative(found, truth, i):
    ours, right = (torch.stack([draw[i].double() for draw in draws]) for draws in (found, truth))
    return ((ours - right).norm() / right.norm()).item()


def main():
    print("RMS relative error in float32 of: loss, dquery, dprototypes\n")
    print("| Q x N x D | metric | features |", " | ".join("fastmeta (ext)" if w == "ext" else w for w in WAYS), "|")
    print("| --- " * (3 + len(WAYS)) + "|")
    for size in SIZES:
        for metric in METRICS:
            for case in CASES:
                of = errors(size, metric, case)
                cells = [", ".join(f"{e:.0e}" for e in of[way]) if way in of else "-" for way in WAYS]
                print("|", " | ".join(["x".join(map(str, size)), metric, case, *cells]), "|")


if __name__ == "__main__":
    main()
