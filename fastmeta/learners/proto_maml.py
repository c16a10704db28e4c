from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .._ask import OF_SUPPORT, ask
from .._route import direct
from .._torch import CHILDREN
from ..distance.prototypes import prototypes
from ..inner._conv import cores
from ..inner._network import first_with_graph, in_order, listed
from ..networks.encoder import features_of_tasks
from ..networks.inner_problem import check_classes
from ..networks.recognise import Plan, look
from ..networks.users_model import Bare
from . import _arguments
from ._learner import NetworkLearner


class ProtoMAML(NetworkLearner):
    r"""MAML whose linear head starts, in every task, as the classifier of its prototypes: W_k = 2 c_k, b_k = -|c_k|^2.

    c_k is the mean of the encoder's features over the support of class k. So before the first step the outputs are those of
    ProtoNet with squared distances, up to a term that all classes share. Then encoder and head take `steps` steps on the support.
    The meta-gradient goes through the steps and through the prototypes.

    `encoder`: any module `[n, ...] -> [n, ...]`, its outputs flattened to features. `ways`: N. `lr`, `task_chunk`: as in `MAML`.
    `first_order`: leave out the derivatives of the steps, but not those of the prototypes. The loss is cross-entropy.
    On a CPU an encoder of convolutional blocks runs whole by `conv_meta_loss`.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # adapted logits [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # query loss [T]

    Source: Triantafillou et al. 2020, arXiv:1903.03096.
    """

    def __init__(
        self,
        encoder: nn.Module,
        ways: int,
        lr: float | Tensor = 0.01,
        steps: int = 1,
        *,
        first_order: bool = False,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        _arguments.module("ProtoMAML", "encoder", encoder)
        self.encoder, self.ways, self.lr, self.steps = encoder, ways, lr, steps
        self.first_order, self.task_chunk = first_order, task_chunk
        self._model = (Classifier(encoder),)  # in a tuple: not a submodule
        self._plan()

    def _settings(self) -> tuple[Any, ...]:
        own = self.__dict__
        return own[CHILDREN].get("encoder"), self.ways, self.steps, self.task_chunk, self.first_order, own.get("lr")

    def _look(self, settings: tuple[Any, ...]) -> Plan:
        name, (encoder, ways, steps, task_chunk, first_order, lr) = self._name, settings
        _arguments.module(name, "encoder", encoder)
        _arguments.whole(name, "ways", ways, 1)
        _arguments.whole(name, "steps", steps, 0)
        _arguments.whole(name, "task_chunk", task_chunk, 1, optional=True)
        _arguments.flag(name, "first_order", first_order)
        if "lr" in self.__dict__:
            _arguments.learning_rate(name, lr)
        if self._model[0].encoder is not encoder:
            self._model = (Classifier(encoder),)
        task = self._task_of(self._model[0], "cross_entropy")
        return look(
            name,
            task,
            None,
            settings,
            self._kept,
            self._trained,
            steps=steps,
            first_order=first_order,
            task_chunk=task_chunk,
        )

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        found: Tensor = self._on_query(support_x, support_y, query_x)
        return found

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        found: Tensor = self._on_query(support_x, support_y, query_x, query_y)
        return found

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        losses, outputs = self._on_query(*data, return_outputs=True)
        return losses, outputs

    def _on_query(self, support_x: Tensor, support_y: Tensor, *query: Tensor, return_outputs: bool = False) -> Any:
        check_classes(self._name, self.ways, support_y, *query[1:])
        network, start, data = self._plan().network, self._head(support_x, support_y), (support_x, support_y, *query)
        found = self._natively(start, data, return_outputs)
        if found is not None:
            return found
        return network.on_query(self.lr, data, start=start, return_outputs=return_outputs)

    def _natively(self, head: Sequence[Tensor], data: tuple[Tensor, ...], return_outputs: bool) -> Any:
        """By the conv ops, the encoder's parameters shared by the tasks and the head's their own; None where they do not take that."""
        parts = None if self._encoder is None else self._encoder.before_linear()
        if parts is None or data[0].ndim != 5:
            return None
        params, blocks = [*parts[0], *head], parts[1]
        if len(self._plan().network.adapted) != sum(p is not None for p in params):  # some of the encoder's are frozen
            return None
        rates, loss, inner = (
            listed(self.lr, params),
            "cross_entropy",
            (self.steps, blocks, "cross_entropy", self.first_order),
        )
        of_call = [cores(len(blocks), loss, examples, before="rates") for examples in (1, 2)]
        if len(data) == 4:
            found = direct("conv_meta_loss", (params, rates, *data), (*inner, return_outputs, None), of_call[1])
            return found if found is None else first_with_graph(found) if return_outputs else found[0]
        adapted = direct("conv_adapt", (params, rates, *data[:2]), (*inner, None), of_call[0])
        if adapted is None:
            return None
        found = direct("conv_forward", (in_order(adapted, params), data[2]), (blocks,), cores(len(blocks), None))
        return found if found is None else found[0]

    def _head(self, support_x: Tensor, support_y: Tensor) -> Sequence[Tensor]:
        """W [T, N, D] and b [T, N] before the first step."""
        features = features_of_tasks(self, self.encoder, support_x).flatten(2)
        centres = ask(self._name, prototypes, OF_SUPPORT, features, support_y, self.ways)
        return 2 * centres, -centres.square().sum(-1)

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        return [self.ways]


class Classifier(Bare):
    """The encoder and a linear layer, whose parameters come from the prototypes and are the last."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        _arguments.features("ProtoMAML", "encoder", features, x.shape[0])
        return F.linear(features.flatten(1), self.head.weight, self.head.bias)
