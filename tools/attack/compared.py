"""The learners that compare: ProtoNet and MatchingNet as their papers define them; see learned.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .formulas import matching_log_probs, mean_loss, proto_log_softmax, prototypes
from .learned import How, Values, tasks, within


def embedded(how: How, learner: nn.Module, values: Values, sx: Tensor, qx: Tensor) -> tuple[Tensor, Tensor]:
    """All tasks as one batch."""
    both = torch.cat([sx, qx], 1)
    features = functional_call(learner.encoder, within(values, "encoder"), (both.flatten(0, 1),))
    features = features.flatten(1).unflatten(0, both.shape[:2])
    return features[:, : sx.shape[1]], features[:, sx.shape[1] :]


def of_log_probs(log_p: Tensor, episode: dict[str, Tensor]) -> Tensor:
    if "query_y" not in episode:
        return log_p
    return tasks(mean_loss, {"log_p": log_p, "y": episode["query_y"]})


def proto_net(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Snell et al. 2017."""
    support, query = embedded(how, learner, values, episode["support_x"], episode["query_x"])
    centres = prototypes(support, episode["support_y"], how.more["ways"])
    temperature = values.get("temperature", how.more["temperature"])
    return of_log_probs(proto_log_softmax(query, centres, how.more["metric"], temperature), episode)


def matching_net(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Vinyals et al. 2016."""
    support, query = embedded(how, learner, values, episode["support_x"], episode["query_x"])
    if learner.context is not None:
        support, query = full_context(learner.context, within(values, "context"), support, query)
    temperature = values.get("temperature", how.more["temperature"])
    found = matching_log_probs(query, support, episode["support_y"], how.more["ways"], how.more["metric"], temperature)
    return of_log_probs(found, episode)


def full_context(context: nn.Module, values: Values, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Vinyals et al. 2016, sections 2.1.2 and A; an LSTM's gates are input, forget, cell, output."""

    def read(xs: Sequence[Tensor], suffix: str) -> list[Tensor]:
        w, u, b, c = (values[f"support.{kind}_l0{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = cell = xs[0] * 0
        found = []
        for x in xs:
            i, f, g, o = (x @ w.T + b + h @ u.T + c).chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            h = o.sigmoid() * cell.tanh()
            found.append(h)
        return found

    xs = support.unbind(1)
    back = read(xs[::-1], "_reverse")[::-1]
    g = torch.stack([a + b + x for a, b, x in zip(read(xs, ""), back, xs, strict=True)], 1)
    h, r, cell = query, query * 0, query * 0
    for k in range(context.steps):
        gates = query @ values["of_input.weight"].T + values["of_input.bias"]
        gates = gates + torch.cat([h, r], -1) @ values["of_state.weight"].T if k else gates
        remember, write, out, new = gates.chunk(4, -1)
        cell = remember.sigmoid() * cell + write.sigmoid() * new.tanh()
        h = out.sigmoid() * cell.tanh() + query
        r = (h @ g.mT).softmax(-1) @ g
    return g, h
