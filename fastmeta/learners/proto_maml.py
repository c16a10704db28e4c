from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from ..ops.prototypes import prototypes
from ..reference.mlp_loss import task_loss
from ._batch_norm import features_of_tasks, refuse_running_statistics
from ._engine import on_query
from ._episode import check_episode
from ._learner import Learner
from ._problem import Problem, Task, adapted_names, problem_of
from .maml import check_loop


class ProtoMAML(Learner):
    r"""MAML whose linear head starts, in every task, as the classifier of its prototypes: W_k = 2 c_k, b_k = -|c_k|^2.

    c_k is the mean of the encoder's features over the support of class k, so that before the first step the outputs are those of
    ProtoNet with squared distances, but for what all classes share. Then encoder and head take `steps` steps on the support; the
    meta-gradient goes through the steps and through the prototypes.

    `encoder`: any module `[n, ...] -> [n, ...]`, its outputs flattened to features. `ways`: N. `lr`, `first_order` (which leaves
    the derivatives of the steps out, not those of the prototypes), `task_chunk`: as in `MAML`. The loss is cross-entropy.

        learner(support_x, support_y, query_x)        # [T, S, ...], [T, S], [T, Q, ...] -> logits of the adapted models [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # -> query loss of each task [T]

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
        check_loop("ProtoMAML", steps, task_chunk)
        refuse_running_statistics("ProtoMAML", encoder)
        self.encoder, self.ways, self.lr, self.steps = encoder, ways, lr, steps
        self.first_order, self.task_chunk = first_order, task_chunk
        head = nn.Linear(1, 1)  # its parameters come from the prototypes
        loss = functools.partial(task_loss, loss="cross_entropy")
        model = nn.Sequential(encoder, nn.Flatten(), head)
        self._task = (Task(model, loss),)  # in a tuple: not a submodule
        self._adapted = adapted_names("ProtoMAML", model, None)

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        check_episode("ProtoMAML", support_x, support_y, query_x)
        start = self._head(support_x, support_y)
        return on_query(self._problem(), self.lr, support_x, support_y, query_x, start=start)

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """The adapted model's loss on the query of each task, [T]."""
        check_episode("ProtoMAML", support_x, support_y, query_x, query_y)
        start = self._head(support_x, support_y)
        return on_query(self._problem(), self.lr, support_x, support_y, query_x, query_y, start=start)

    def _head(self, support_x: Tensor, support_y: Tensor) -> Sequence[Tensor]:
        """W [T, N, D] and b [T, N] before the first step."""
        features = features_of_tasks(self.encoder, support_x).flatten(2)
        centres = prototypes(features, support_y, self.ways)
        return 2 * centres, -centres.square().sum(-1)

    def _problem(self) -> Problem:
        return problem_of(
            "ProtoMAML", self._task[0], self._adapted, rates=self.lr, steps=self.steps,
            first_order=self.first_order, task_chunk=self.task_chunk, of_tasks=2,
        )  # fmt: skip
