from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .._asked import with_gradients
from .._layout import tensors_of
from .._torch import CHILDREN, accumulate, has_gradient_hooks, is_plain
from ..loops.optimisers import InnerOptimiser
from ..networks.chain import noise_of, restore
from ..networks.recognise import Plan, look
from ..networks.users_model import LOSSES
from ..types import Loss
from . import _arguments
from ._episode import check_episode
from ._learner import Learner, NetworkLearner

LEARNING_RATE = 0.01


class MAML(NetworkLearner):
    r"""theta_{k+1} = theta_k - lr * dL_support(theta_k)/dtheta, `steps` times from `model`'s parameters; then predict the query.

    `model`: any module `[n, ...] -> [n, ...]`. Two kinds run all tasks in one native call. One is an `nn.Sequential` of
    Flatten, Linear and one kind of activation (ReLU, LeakyReLU(0.01), Tanh, GELU, SiLU, Sigmoid, Identity; in a `forward` of
    your own torch.sin too): `mlp_meta_loss`. The other, on a CPU, is an `nn.Sequential` of blocks of Conv2d,
    BatchNorm2d or GroupNorm, ReLU, MaxPool2d(2), then Flatten, blocks of Linear, BatchNorm1d or LayerNorm, ReLU, and Linear,
    or of the latter alone: `conv_meta_loss`. With cross-entropy, both may end with log_softmax. Any other model runs through
    autograd, several tasks at once where torch.vmap can and is faster, else one by one. Its meta-gradient comes from a chain
    of Hessian-vector products, so memory grows with `steps` only by the parameters
    before each. All are exact, with random layers and batch norm too. Batch norm must use batch statistics
    (`fastmeta.use_batch_statistics`).
    `lr`: a number, or a tensor, 0-dim or `[steps]`; as an `nn.Parameter` it is learned.
    `loss`: "cross_entropy" (label -100: left out), "mse", or a function or module (outputs, targets) of one task -> scalar; a
    module's parameters are trained.
    `first_order`: leave out the second derivatives (FOMAML).
    `adapt`: names of the parameters that change in the inner loop, or of modules that hold them. The others are trained, but
    the inner loop leaves them as they are. None: all change. Parameters with requires_grad=False are neither adapted nor
    trained. The attribute `adapted` lists the names of those that change, and may be assigned.
    `loss_weights`: numbers w_1 .. w_steps; the query loss is then sum_k w_k L_query(theta_k), MAML++'s multi-step loss, in the
    general engine. It is an attribute: assign it as training goes on, None for the last step alone.
    `task_chunk`: the most tasks at once in the general engine, to bound its memory. None: all of them.
    `optimiser`: `fastmeta.SGD` or `fastmeta.Adam` in place of `lr`, with momentum, decay or rates by the names of the model's
    parameters. It starts in every task without state. The models above take it in their native call, on a CPU, where only its rates
    are tensors, of one kind, without `loss_weights`; else the loop is `fastmeta.unroll`'s, in the general engine. An
    `nn.Parameter` among its numbers is the learner's too. The attribute `inner_optimiser` holds it.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # the adapted models' outputs
        learner.loss(support_x, support_y, query_x, query_y)  # query loss [T]

    The learner looks at its model in every call: layers, weights, hooks and flags may change between calls, and so may the
    attributes `model`, `lr`, `steps`, `inner_loss` and the others. What no kernel knows, such as a hook, runs through autograd.
    Between `learner(...)` and its backward the model must stay as it is (RuntimeError). Under torch.func.functional_call, a
    tensor that stands in for a parameter is frozen if the parameter was frozen at the last ordinary call.

    Errors: TypeError and ValueError for wrong arguments; ValueError for a label outside [0, classes) that is not -100, and for a
    rate that is not finite. On CUDA labels are not looked at, because that would wait for the device, nor under torch.func and
    torch.compile: there a wrong label makes its task's loss NaN, and every gradient that it reaches. An episode without tasks
    gives no losses, and gradients of 0.

    Sources: Finn et al. 2017, arXiv:1703.03400; Antoniou et al. 2019, arXiv:1810.09502.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = LEARNING_RATE,
        steps: int = 1,
        *,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        first_order: bool = False,
        adapt: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        task_chunk: int | None = None,
        optimiser: InnerOptimiser | None = None,
    ) -> None:
        super().__init__()
        _arguments.module(self._name, "model", model)
        _arguments.names(self._name, "adapt", adapt)
        self.model, self.steps, self.inner_loss, self.first_order = model, steps, loss, first_order
        self.loss_weights, self.task_chunk = loss_weights, task_chunk
        self._adapt = None if adapt is None else tuple(adapt)
        if optimiser is not None and (isinstance(lr, Tensor) or lr != LEARNING_RATE):
            raise ValueError(
                f"{self._name}: lr must not be given beside optimiser, which has its own, got {_arguments.came(lr)}"
            )
        self.inner_optimiser, self.lr = optimiser, lr
        self._weights()
        self._plan()

    @property
    def adapted(self) -> list[str]:
        """The names of the parameters that change in the inner loop."""
        return list(self._plan().adapted)

    @adapted.setter
    def adapted(self, names: Sequence[str]) -> None:
        _arguments.names(self._name, "adapted", names)
        self._adapt = None if names is None else tuple(names)

    @property
    def inner_optimiser(self) -> InnerOptimiser | None:
        """In the place of `lr`."""
        found = self._optimiser
        return found and found.standing(self.learned)

    @inner_optimiser.setter
    def inner_optimiser(self, optimiser: InnerOptimiser | None) -> None:
        if not isinstance(optimiser, InnerOptimiser | None):
            raise TypeError(
                f"{self._name}: optimiser must be None, a fastmeta.SGD or a fastmeta.Adam, got {_arguments.came(optimiser)}"
            )
        self._optimiser = optimiser
        if optimiser is not None:
            self.learned = nn.ParameterList(optimiser.parameters())

    def rates(self) -> float | Tensor | list[Tensor]:
        """The inner learning rates: one for all parameters, or a list with one for each adapted parameter."""
        return self.lr

    def _rates(self) -> Any:
        """What the network takes for them: the optimiser, where there is one."""
        return self.rates() if self._optimiser is None else self.inner_optimiser

    @property
    def _loss(self) -> Any:
        return self.inner_loss

    def _settings(self) -> tuple[Any, ...]:
        own = self.__dict__
        modules = own[CHILDREN]
        loss = own.get("inner_loss", modules.get("inner_loss"))
        model = modules.get("model")
        known = (self._adapt, self.steps, self.task_chunk, self.first_order, own.get("lr"), own["_optimiser"])
        return model, loss, *known

    def _look(self, settings: tuple[Any, ...]) -> Plan:
        name, (model, loss, adapt, steps, task_chunk, first_order, lr, optimiser) = self._name, settings[:8]
        _arguments.module(name, "model", model)
        if not callable(loss):
            _arguments.word(name, "loss", loss, LOSSES, also="a function")
        _arguments.whole(name, "steps", steps, 0)
        _arguments.whole(name, "task_chunk", task_chunk, 1, optional=True)
        _arguments.flag(name, "first_order", first_order)
        if "lr" in self.__dict__:
            _arguments.learning_rate(name, lr)
        return look(
            name, self._task_of(model, loss), adapt, settings, self._kept, self._trained, steps=steps, first_order=first_order,
            task_chunk=task_chunk, optimises=optimiser is not None,
        )  # fmt: skip

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        network = self._plan().network
        return network.predict(self._rates(), (support_x, support_y, query_x))

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self._plan().network.losses(self._rates(), (support_x, support_y, query_x, query_y), self._weights())

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        return self._plan().network.losses_and_outputs(self._rates(), data, self._weights())

    def _backward(self, *data: Tensor, return_outputs: bool) -> Any:
        network, rates = self._plan().network, self.rates()
        ours = getattr(self.loss, "__func__", None) is Learner.loss and type(self)._losses is MAML._losses
        op = network.meta_loss_op if ours and self.loss_weights is None and is_plain() else None
        if op is None or any(not isinstance(x, Tensor) or x.requires_grad for x in data):
            return super()._backward(*data, return_outputs=return_outputs)
        of_rates = [x for x in (rates if isinstance(rates, list) else [rates]) if isinstance(x, Tensor)]
        learned = [x for x in of_rates if x.requires_grad]
        if any(not x.is_leaf or has_gradient_hooks(x) for x in (*network.leaves, *learned)):
            return super()._backward(*data, return_outputs=return_outputs)
        check_episode(self._name, self._loss, *data)
        if not len(data[0]):
            return super()._backward(*data, return_outputs=return_outputs)
        of_data = network.losses_and_outputs if return_outputs else network.losses
        cotangents = (_of_mean(len(data[0]), network.leaves[0].dtype),)
        found, grads = with_gradients(
            op, (0, 1) if learned else (0,), of_data, (rates, data), {}, cotangents=cotangents
        )
        if grads is not None:
            # A rate may be frozen among others that are learned.
            values, count = [*network.leaves, *(of_rates if learned else [])], len(network.leaves)
            flat = tensors_of(grads)
            of_params, others = network.own_order(flat[:count]), flat[count:]
            of_rates_too = network.own_order(others) if len(others) == count else others
            pairs = [(x, g) for x, g in zip(values, (*of_params, *of_rates_too), strict=True) if x.requires_grad]
            accumulate(pairs)
        return found

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        x = query_x.new_zeros(query_x.shape[1:])
        noise = noise_of(x)
        with torch.no_grad():
            outputs = self._of_one_task(x)
        restore(noise)
        return outputs.shape[1:]

    def _of_one_task(self, x: Tensor) -> Tensor:
        """The outputs before any step, [n, ...] -> [n, ...]."""
        found: Tensor = self.model(x)
        return found

    def _weights(self) -> tuple[float, ...] | None:
        given = self.loss_weights
        if given is None:
            return None
        weights = given.tolist() if hasattr(given, "tolist") else given
        right = isinstance(weights, list | tuple) and len(weights) == self.steps > 0
        if not right or not all(isinstance(w, Real) and math.isfinite(w) for w in weights):
            came = list(weights) if isinstance(weights, list | tuple) else _arguments.came(weights)
            raise ValueError(
                f"{self._name}: loss_weights must be a finite number for each of at least one step, got {came} for "
                f"{self.steps} steps"
            )
        return tuple(map(float, weights))


@functools.lru_cache(maxsize=64)
def _of_mean(tasks: int, dtype: torch.dtype) -> Tensor:
    """What each task's loss counts in their mean, on a CPU."""
    return torch.full((tasks,), 1 / max(tasks, 1), dtype=dtype, device="cpu")
