"""Each op of a network on a problem of mlp_cases or conv_cases: a function of all that it can be differentiated by, and those tensors."""


def _targets(p):
    return [p.y] if p.loss == "mse" else []


def _weights(p):
    return [] if p.weights is None else [p.weights]


def _weighting(p, *tensors):
    """The options that the last tensors are."""
    return dict(zip(("weights", "query_weights"), tensors, strict=False)) if _weights(p) else {}


def forward(p):
    return lambda *t: p.op("forward")(p.tree(t[:-1]), t[-1], **p.of_network()), [*p.flat, p.x]


def _of_examples(name, p):
    n = len(p.flat)

    def fn(*t):
        y = t[n + 1] if _targets(p) else p.y
        return p.op(name)(p.tree(t[:n]), t[n], y, **p.options(), **_weighting(p, t[-1]))

    return fn, [*p.flat, p.x, *_targets(p), *_weights(p)]


def loss(p):
    return _of_examples("loss", p)


def grad(p):
    return _of_examples("grad", p)


def hvp(p, curvature="hessian"):
    n = len(p.flat)

    def fn(*t):
        params, vectors, x, *rest = p.tree(t[:n]), p.tree(t[n : 2 * n]), *t[2 * n :]
        y = rest[0] if rest and _targets(p) else p.y
        return p.op("hvp")(params, vectors, x, y, **p.options(), curvature=curvature, **_weighting(p, t[-1]))

    return fn, [*p.flat, *p.vectors(), p.x, *_targets(p), *_weights(p)]


def adapt(p, kind, steps, first_order=False):
    n, rates = len(p.flat), p.rates(kind, steps)
    m = n + len(rates)
    options = p.options() | {"first_order": first_order}

    def fn(*t):
        y = t[m + 1] if _targets(p) else p.y
        lr, of_steps = p.steps(p.lr(kind, t[n:m]), steps)
        return p.op("adapt")(p.tree(t[:n]), lr, t[m], y, **options, **of_steps, **_weighting(p, t[-1]))

    return fn, [*p.flat, *rates, p.x, *_targets(p), *_weights(p)]


def meta_loss(p, kind, steps, first_order=False):
    n, rates, query_x, query_y = len(p.flat), p.rates(kind, steps), p.like_x(4), p.targets(4)
    m = n + len(rates)
    options = p.options() | {"first_order": first_order}

    def fn(*t):
        examples = t[m : m + 4] if _targets(p) else (t[m], p.y, t[m + 1], query_y)
        lr, of_steps = p.steps(p.lr(kind, t[n:m]), steps)
        return p.op("meta_loss")(p.tree(t[:n]), lr, *examples, **options, **of_steps, **_weighting(p, *t[-2:]))

    weights = [p.weights, p.drawn_weights(4)] if _weights(p) else []
    return fn, [*p.flat, *rates, *([p.x, p.y, query_x, query_y] if _targets(p) else [p.x, query_x]), *weights]


def every(p, kind, first_order):
    return [forward(p), loss(p), grad(p), hvp(p), adapt(p, kind, 2, first_order), meta_loss(p, kind, 2, first_order)]
