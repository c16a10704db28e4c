"""How many tasks a meta-batch can use: the gradient noise scale of McCandlish et al. 2018, arXiv:1812.06162.

B = tr(covariance of a task's meta-gradient) / |its mean|^2. A training with b tasks in a meta-batch takes 1 + B / b times as many
meta-iterations as one with all tasks there are: far below B twice the tasks halve them, far above they change nothing.
"""

import torch

import fastmeta
from fastmeta.data import Sinusoid

TASKS = 25  # of a meta-batch in training


def noise_scale(learner, draw, batches, generator):
    """From the gradients of `batches` meta-batches and of all their tasks together, both without bias."""
    gradients = [flat_gradient(learner, draw(TASKS, generator)) for _ in range(batches)]
    small = torch.stack([g.square().sum() for g in gradients]).mean()
    large = torch.stack(gradients).mean(0).square().sum()
    squared_mean = (batches * large - small) / (batches - 1)
    trace = TASKS * (small - large) / (1 - 1 / batches)
    return (trace / squared_mean).item()


def flat_gradient(learner, episodes):
    loss = learner.loss(*episodes).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.parameters()))]).double()


def of_sinusoids(iterations, batches=160):
    """{meta-iterations: noise scale} of MAML on the sinusoids, 1-40-40-1, 10 + 10 examples, 5 steps, Adam."""
    layers = (torch.nn.Linear(1, 40), torch.nn.Linear(40, 40), torch.nn.Linear(40, 1))
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    learner, generator = fastmeta.MAML(model, 0.01, 5, loss="mse"), torch.Generator().manual_seed(0)
    optimiser, found = torch.optim.Adam(learner.parameters(), 1e-3), {}

    def draw(tasks, generator):
        return Sinusoid().sample(tasks, 10, 10, generator=generator)

    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            found[iteration] = noise_scale(learner, draw, batches, generator)
        optimiser.zero_grad()
        learner.loss(*draw(TASKS, generator)).mean().backward()
        optimiser.step()
    return found
