"""Each mlp op on a problem of mlp_cases: a function of all that it can be differentiated by, and those tensors."""

import torch

import fastmeta
from harness.mlp_cases import lr_of, rates_of


def _examples(p):
    return [p.x, *([p.y] if p.loss == "mse" else [])]


def forward(p):
    return lambda *t: fastmeta.mlp_forward(p.tree(t[:-1]), t[-1], activation=p.activation), [*p.flat, p.x]


def _of_examples(op, p):
    n = len(p.flat)
    fn = lambda *t: op(p.tree(t[:n]), t[n], t[n + 1] if p.loss == "mse" else p.y, **p.options())  # noqa: E731
    return fn, [*p.flat, *_examples(p)]


def loss(p):
    return _of_examples(fastmeta.mlp_loss, p)


def grad(p):
    return _of_examples(fastmeta.mlp_grad, p)


def hvp(p, curvature="hessian"):
    n = len(p.flat)

    def fn(*t):
        params, vectors = p.tree(t[:n]), p.tree(t[n : 2 * n])
        return fastmeta.mlp_hvp(params, vectors, t[2 * n], p.y, **p.options(), curvature=curvature)

    return fn, [*p.flat, *vectors_of(p), p.x]


def vectors_of(p):
    return [torch.randn(p.x.shape[0], *p.core(t), dtype=p.x.dtype) for t in p.flat]


def adapt(p, kind, steps, first_order=False):
    n, rates = len(p.flat), rates_of(p, kind, steps)
    m = n + len(rates)

    def fn(*t):
        options = p.options() | {"steps": steps, "first_order": first_order}
        targets = t[m + 1] if p.loss == "mse" else p.y
        return fastmeta.mlp_adapt(p.tree(t[:n]), lr_of(p, kind, t[n:m]), t[m], targets, **options)

    return fn, [*p.flat, *rates, *_examples(p)]


def meta_loss(p, kind, steps, first_order=False):
    n, rates = len(p.flat), rates_of(p, kind, steps)
    query_x = torch.randn(p.x.shape[0], 4, p.x.shape[-1], dtype=p.x.dtype)
    mse = p.loss == "mse"
    query_y = torch.randn_like(p.y[:, :1]).repeat(1, 4, 1) if mse and p.y.shape[1] else None
    if query_y is None:
        shape = (p.x.shape[0], 4)
        query_y = torch.zeros(*shape, p.y.shape[-1], dtype=p.x.dtype) if mse else torch.zeros(shape, dtype=torch.int64)

    def fn(*t):
        rest = t[n + len(rates) :]
        sx, sy, qx, qy = (rest[0], rest[1], rest[2], rest[3]) if mse else (rest[0], p.y, rest[1], query_y)
        options = p.options() | {"steps": steps, "first_order": first_order}
        return fastmeta.mlp_meta_loss(p.tree(t[:n]), lr_of(p, kind, t[n : n + len(rates)]), sx, sy, qx, qy, **options)

    return fn, [*p.flat, *rates, *([p.x, p.y, query_x, query_y] if mse else [p.x, query_x])]


def every(p, kind, first_order):
    return [forward(p), loss(p), grad(p), hvp(p), adapt(p, kind, 2, first_order), meta_loss(p, kind, 2, first_order)]
