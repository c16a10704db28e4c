"""Inner loops as anybody writes them: torch.optim's formulas on tensors that autograd keeps the graph of."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

D = torch.float64


def at(value, k, name):
    """Of step k; of a parameter where there is one for each."""
    if isinstance(value, dict):
        value = value[name]
    if isinstance(value, tuple):
        return tuple(at(x, k, name) for x in value)
    return value(k) if callable(value) else value


@sdpa_kernel(SDPBackend.MATH)  # the only attention that torch differentiates twice
def plain_unroll(loss, params, batches, formula, states=None, first_order=False, before=0, **options):
    """`params`: a dict; `batches`: a list; an option that is a function of the step has a value for each. All points, and the state."""
    points = [dict(params)]
    states = states or {name: [torch.zeros_like(p)] * 2 for name, p in params.items()}
    for k, batch in enumerate(batches):
        params = points[-1]
        leaves = {name: p if p.requires_grad else p.clone().requires_grad_() for name, p in params.items()}
        with torch.enable_grad():
            total = loss(leaves, *batch).sum()
            grads = torch.autograd.grad(
                total, list(leaves.values()), create_graph=not first_order, allow_unused=True, materialize_grads=True
            )
        following = {}
        for (name, p), g in zip(params.items(), grads, strict=True):
            of_step = {option: at(value, k, name) for option, value in options.items()}
            following[name], states[name] = formula(p, g, states[name], before + k + 1, **of_step)
        points.append(following)
    return points, states
