"""What the programs of fastmeta.unroll differentiate: for so many inner steps, small for a test or as large as they run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import distill
import hyperparameters
import maml_plus
import modulate
import reweight
import torch
import truncated
import ttt
from letters import Letters, network
from torch import Tensor

import fastmeta
from fastmeta.data import Episodes


class Problem(NamedTuple):
    value: Callable[[str], Tensor]  # of a way
    inputs: list[Tensor]

    def differentiated(self, way: str) -> list[Tensor]:
        """The loss and its gradients to the inputs."""
        loss = self.value(way)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), self.inputs)]


def letters(n: int) -> Letters:
    return Letters(torch.rand(n, 1, 28, 28), torch.arange(n) % 3)


def weights() -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network(3).named_parameters()}


def distilling(steps: int, large: bool) -> Problem:
    data, rate = letters(10 if large else 6), torch.tensor(0.1, requires_grad=True)
    given = network(3), weights(), weights(), data.x.requires_grad_(), data.y, rate, steps
    return Problem(lambda way: distill.matching(way, *given), [data.x, rate])


def truncating(steps: int, large: bool) -> Problem:
    data, real = letters(10 if large else 6), letters(100 if large else 5)
    optimiser = fastmeta.Adam(0.005, eps=1e-4, weight_decay=0.01)
    given = network(3), Letters(data.x.requires_grad_(), data.y), 0 if large else 2, steps, optimiser, real
    return Problem(lambda way: truncated.window_loss(way, *given), [data.x])


def reweighting(steps: int, large: bool) -> Problem:
    n = 100 if large else 5
    weight = torch.zeros(n, requires_grad=True)
    given = network(3), weight, letters(n), letters(n), 0.1, steps
    return Problem(lambda way: reweight.clean_loss(way, *given), [weight])


def of_layers(steps: int, large: bool) -> Problem:
    net = hyperparameters.network(3)
    rates, decays = (hyperparameters.starting_at(value, net) for value in (0.1, 0.01))
    start = {name: p.detach() for name, p in net.named_parameters()}
    batches = [letters(100 if large else 4 + k % 2) for k in range(steps)]
    given = net, start, batches, rates, decays, letters(200 if large else 3)
    return Problem(lambda way: hyperparameters.held_out_loss(way, *given), [*rates.values(), *decays.values()])


def reading(steps: int, large: bool) -> Problem:
    model, (texts, length) = (ttt.Reader(), (8, 64)) if large else (ttt.Reader(6, 5, 3), (3, 7))
    chunks = [torch.randint(ttt.VOCABULARY, (texts, ttt.WINDOW + length)) for _ in range(steps + 1)]
    return Problem(lambda way: ttt.losses(way, model, chunks), list(model.parameters()))


def modulating(steps: int, large: bool) -> Problem:
    net, side = modulate.Sines(width=64 if large else 8), 20 if large else 4
    rates, images, places = torch.full((steps,), 0.1), torch.rand(16 if large else 3, side**2), modulate.places_of(side)
    inputs = [*net.parameters(), rates.requires_grad_()]
    return Problem(lambda way: modulate.errors(way, net, rates, images, places), inputs)


def in_batches(steps: int, large: bool) -> Problem:
    net, ways, tasks = (maml_plus.network(5, hidden=16), 5, 4) if large else (maml_plus.network(3, hidden=2), 3, 2)
    rates: Any = maml_plus.rates_of(net, 0.1, steps)
    support, query = (torch.rand(tasks, ways * n, 1, 28, 28) for n in (steps, 5))
    labels = (torch.arange(ways).repeat_interleave(n).expand(tasks, -1) for n in (steps, 5))
    episodes = Episodes(support, next(labels), query, next(labels))
    inputs = [*net.parameters(), *(rate.requires_grad_() for rate in rates.values())]
    return Problem(lambda way: maml_plus.query_losses(way, net, rates, [True] * steps, episodes), inputs)


PROGRAMS: dict[str, Callable[[int, bool], Problem]] = {
    "distill": distilling, "truncated": truncating, "reweight": reweighting, "hyperparameters": of_layers,
    "ttt": reading, "modulate": modulating, "maml_plus": in_batches,
}  # fmt: skip
