"""The same meta-iteration in JAX, where it is installed: the plain formulas, jitted with their gradients and Adam."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastmeta


def installed() -> bool:
    return importlib.util.find_spec("jax") is not None


class MetaIterations:
    """Of a MAML, MetaSGD or ProtoNet learner on the layers of the examples, from its parameters on; Adam with rate 1e-3."""

    def __init__(self, learner: Any) -> None:
        self.jax: Any = importlib.import_module("jax")
        loss = self._protonet(learner) if isinstance(learner, fastmeta.ProtoNet) else self._maml(learner)
        self.gradients = self.jax.jit(self.jax.value_and_grad(loss))
        self.leaves = [self._array(p) for p in learner.parameters()]
        zeros = [0 * p for p in self.leaves]
        self.state: Any = (self.leaves, zeros, zeros, 0.0)
        self.step = self.jax.jit(self._step)

    def seconds(self, tasks: Sequence[Tensor]) -> float:
        """Of one on these tasks."""
        given = [self._array(x) for x in tasks]
        start = time.perf_counter()
        self.state = self.jax.block_until_ready(self.step(self.state, *given))
        return time.perf_counter() - start

    def first_gradients(self, tasks: Sequence[Tensor]) -> list[Tensor]:
        """At the learner's parameters."""
        _, found = self.gradients(self.leaves, *(self._array(x) for x in tasks))
        return [torch.from_dlpack(g) for g in found]

    def _array(self, x: Tensor) -> Any:
        return self.jax.numpy.array(x.detach().numpy())

    def _step(self, state: Any, *tasks: Any) -> Any:
        params, means, squares, count = state
        _, found = self.gradients(params, *tasks)
        count += 1
        means = [0.9 * m + 0.1 * g for m, g in zip(means, found, strict=True)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, found, strict=True)]
        slopes = [
            m / (1 - 0.9**count) / (self.jax.numpy.sqrt(s / (1 - 0.999**count)) + 1e-8)
            for m, s in zip(means, squares, strict=True)
        ]
        return [p - 1e-3 * slope for p, slope in zip(params, slopes, strict=True)], means, squares, count

    def _maml(self, learner: Any) -> Callable[..., Any]:
        layers, size = list(learner.model), len(list(learner.model.parameters()))
        loss = self._squared_error if learner.inner_loss == "mse" else self._cross_entropy

        def of_task(leaves: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
            params, rates = leaves[:size], leaves[size:] or [learner.lr] * size
            of_support = self.jax.grad(lambda ps: loss(self._outputs(layers, ps, support_x), support_y))
            for _ in range(learner.steps):
                params = [p - rate * g for p, rate, g in zip(params, rates, of_support(params), strict=True)]
            return loss(self._outputs(layers, params, query_x), query_y)

        return lambda leaves, *tasks: self.jax.vmap(lambda *task: of_task(leaves, *task))(*tasks).mean()

    def _protonet(self, learner: fastmeta.ProtoNet) -> Callable[..., Any]:
        """Squared distances, as the examples have them."""
        jnp, encoder = self.jax.numpy, learner.encoder
        assert isinstance(encoder, nn.Sequential) and learner.metric == "sqeuclidean"

        def loss(params: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
            both = jnp.concatenate([support_x, query_x], 1)
            features = self._outputs(list(encoder), params, both.reshape(-1, *both.shape[2:]))
            features = features.reshape(*both.shape[:2], -1)
            support, query = features[:, : support_x.shape[1]], features[:, support_x.shape[1] :]
            members = self.jax.nn.one_hot(support_y, ways)  # [T, S, N]
            centres = jnp.einsum("tsn,tsd->tnd", members, support) / members.sum(1)[..., None]
            square = (query**2).sum(-1)[..., None] + (centres**2).sum(-1)[:, None] - 2 * query @ centres.mT
            return self._cross_entropy(-square / learner.temperature, query_y)

        ways = learner.num_classes or 5
        return loss

    def _outputs(self, layers: Sequence[nn.Module], params: Any, x: Any) -> Any:
        jax, of = self.jax, iter(params)
        for layer in layers:
            x = _layer(jax, layer, of, x)
        return x

    def _cross_entropy(self, logits: Any, y: Any) -> Any:
        log_probs = self.jax.nn.log_softmax(logits)
        return -self.jax.numpy.take_along_axis(log_probs, y[..., None], -1).mean()

    def _squared_error(self, outputs: Any, y: Any) -> Any:
        return ((outputs - y) ** 2).mean()


def _layer(jax: Any, layer: nn.Module, params: Iterator[Any], x: Any) -> Any:
    match layer:
        case nn.Flatten():
            return x.reshape(len(x), -1)
        case nn.ReLU():
            return jax.nn.relu(x)
        case nn.Linear():
            return x @ next(params).T + next(params)
        case nn.Conv2d():
            layout = ("NCHW", "OIHW", "NCHW")
            x = jax.lax.conv_general_dilated(x, next(params), (1, 1), "SAME", dimension_numbers=layout)
            return x + next(params)[:, None, None]
        case nn.BatchNorm2d():
            mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            x = (x - mean) / jax.numpy.sqrt(variance + layer.eps)
            return x * next(params)[:, None, None] + next(params)[:, None, None]
        case nn.MaxPool2d():
            return jax.lax.reduce_window(x, -jax.numpy.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    raise TypeError(f"in_jax: a layer must be one of the examples', got {type(layer).__name__}")
