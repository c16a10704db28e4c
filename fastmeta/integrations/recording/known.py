"""Models whose inner loop is a native op."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..._torch import BUFFERS, HOOK_ENDINGS, PARAMETERS, AnyNorm, has_gradient_hooks
from ...inner._conv import convolved_side, pooled_side
from ...networks.batch_norm import has_running_statistics, use_batch_statistics
from ...networks.convnet import ConvNet
from ...networks.fused import Fused
from ...networks.mlp import Mlp
from ...networks.program import Program
from ...networks.recognise import look
from ...networks.users_model import Seen, Task
from ...types import ConvBlock
from .._steps import SMALL, copy_of
from .statistics import may_track, norms_of

LOSS_OF = {"nll_loss": "cross_entropy"}  # of what comes before log_softmax
# Layers that compute the same from the same, and nothing else; batch norm on the statistics of the batch. (Convolutions of several
# tasks at once are slower than one after the other.)
PURE = (
    nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Identity, nn.BatchNorm1d, nn.LayerNorm, nn.LeakyReLU, nn.SiLU,
    nn.ELU, nn.Softplus,
)  # fmt: skip
NO_DATA = (False,) * 4  # no gradient to support and query
DTYPES = (torch.float32, torch.float64)
OF_NORM = ("training", "track_running_stats", "num_features", "eps", "momentum", "affine")
LIKELY, PAST = 0.6, 1 << 6  # of the values, how many; the numbers of six bits


class Guess:
    """Whether a way back will follow a value that is read, for both to be computed at once: where most values had one, or where one
    came after the last values like these."""

    def __init__(self) -> None:
        self.read = self.taken = 0  # how many values; of these, how many had a way back
        self.latest: list[bool] = []  # whether the last one had
        self.past = 0  # the same of those before, in bits
        self.after: dict[int, bool] = {}  # what came after such a past

    def next(self) -> tuple[bool, list[bool]]:
        """For a value that is read now; and a list to note in it that it had a way back."""
        if self.latest:
            self.after[self.past] = self.latest[0]
            self.past = (2 * self.past + self.latest[0]) % PAST
        self.read, self.latest = self.read + 1, [False]
        return self.taken > LIKELY * self.read or self.after.get(self.past, False), self.latest


class Refused(Exception):
    """Why a model is not recorded."""


class Known:
    """A model that a native op runs, as it was when it was looked at."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.name = model, type(model).__name__
        self.seen = Seen(model)
        self.networks: dict[Any, Any] = {}
        self.outputs: dict[Any, torch.Size | None] = {}
        self.keys: dict[Any, int] = {}  # of what was done in a trace: a number for each
        self.why = ""
        self.guess = Guess()
        self.used = self.missed = 0  # how often a native op took a loss, and how often outputs went elsewhere
        try:
            self._look()
        except Refused as reason:
            self.why = str(reason)

    def _look(self) -> None:
        params = list(self.model.parameters())
        if not params or any(type(p) is not nn.Parameter or not p.requires_grad for p in params):
            raise Refused("a parameter is frozen or stands in for one")
        if len(params) < sum(p is not None for m in self.model.modules() for p in getattr(m, PARAMETERS).values()):
            raise Refused("modules share a parameter")
        first = params[0]
        if any(p.dtype not in DTYPES or p.dtype != first.dtype or not p.is_cpu for p in params):
            raise Refused("parameters are not of one dtype, float32 or float64, on a CPU")
        bare = self._without_statistics()
        try:
            task = Task("MAML", bare, "cross_entropy")
            plan = look("MAML", task, None, (), None, {}, steps=1, first_order=False, task_chunk=None)
        except ValueError as error:
            raise Refused(str(error).removeprefix("MAML: ")) from None
        network = plan.network
        self.native = isinstance(network, Mlp | ConvNet)
        if not self.native:
            self._check_pure(bare)
        if network.seen is not None:
            self.seen.reads += network.seen.reads if bare is self.model else Program(self.model).reads
        self.network, self.params, self.dtype = network, params, first.dtype
        self.places = {id(p): i for i, p in enumerate(params)}
        self.template = copy_of(self.model, lambda p: p, lambda b: b)
        self.alone = copy_of(bare, lambda p: p, lambda b: b)  # without the hooks that the model may get
        for part in self.alone.modules():
            part.__dict__.update({name: d.copy() for name, d in vars(part).items() if name.endswith(HOOK_ENDINGS)})
        if self.statistics:
            self.norms = norms_of(self.model)
            parts = [*self.model.modules()]
            self.places_of_norms = [parts.index(norm) for norm in self.norms]
            self.norms_alone = [[*self.alone.modules()][i] for i in self.places_of_norms]
            if not may_track(self.norms, self.dtype):
                raise Refused("running statistics are not of the parameters' dtype, on a CPU, of one norm each")
        if isinstance(network, Mlp | ConvNet):
            of_params = [p is not None for p in network.params]
            leaves = [p for p in network.params if p is not None]
            self.of_numbers: tuple[tuple[bool, ...], list[Any]] = ((*of_params, False, *NO_DATA), leaves)

    def _without_statistics(self) -> nn.Module:
        """The model, or a copy whose batch norms keep no running statistics, which in training do not matter to the outputs."""
        norms = [m for m in self.model.modules() if isinstance(m, AnyNorm) and has_running_statistics(m)]
        self.statistics = bool(norms)
        if not norms:
            return self.model
        if not all(m.training and m.track_running_stats for m in norms):
            raise Refused("batch norm uses running statistics")
        self.seen.reads += [(vars(m).get, name, vars(m)[name]) for m in norms for name in OF_NORM]
        theirs = [d for m in norms for d in (getattr(m, BUFFERS), vars(m))]  # buffers may be exchanged
        pairs = [*zip(self.seen.filled, self.seen.contents, strict=True)]
        pairs = [(d, was) for d, was in pairs if all(d is not held for held in theirs)]
        self.seen.filled, self.seen.contents = [d for d, _ in pairs], [was for _, was in pairs]
        return use_batch_statistics(copy_of(self.model, lambda p: p, lambda b: b))

    def _check_pure(self, model: nn.Module) -> None:
        """Refused unless the general engine may run the model later: it draws no number and keeps nothing."""
        if len([*model.parameters()]) < len([*model.named_parameters(remove_duplicate=False)]):
            raise Refused("modules share a parameter")
        if sum(p.numel() for p in self.model.parameters()) > SMALL:
            raise Refused("no native op runs the model, and its steps take longer than what several tasks at once save")
        program = Program(model)
        calls = [step.call for step in program.steps]
        if program.end is None or self.statistics:
            raise Refused("no native op runs the model, and what its forward does is not known")
        if not all(type(call) in PURE if isinstance(call, nn.Module) else call is not F.dropout for call in calls):
            raise Refused("no native op runs the model, and a layer convolves, draws numbers or keeps something")

    def holds(self, model: nn.Module) -> bool:
        return model is self.model and self.seen.same_parameters() and self.seen.holds()

    def network_for(self, loss: str, steps: int, first_order: bool) -> Any:
        key = loss, steps, first_order
        if key not in self.networks:
            task = Task("MAML", self.alone, LOSS_OF.get(loss, loss))
            self.networks[key] = replace(self.network, task=task, steps=steps, first_order=first_order)
        return self.networks[key]

    def takes(self, loss: str) -> bool:
        """Whether it is a loss that ops have of these outputs."""
        ends = isinstance(self.network, Fused) and self.network.log_softmax
        return ends if loss == "nll_loss" else not ends or loss == "cross_entropy"

    def output_shape(self, shape: torch.Size) -> torch.Size | None:
        """Of inputs of this shape; None: the model has to say what is wrong with them, or it does not take them natively."""
        if shape not in self.outputs:
            network, found = self.network, None
            if len(shape) > 1 and shape.numel():
                of_kind = _mlp_outputs if isinstance(network, Mlp) else _conv_outputs
                found = of_kind(network, shape) if self.native else self._outputs_of_any(shape)
            if len(self.outputs) > 1000:
                self.outputs.clear()
            self.outputs[shape] = found
        return self.outputs[shape]

    def _outputs_of_any(self, shape: torch.Size) -> torch.Size | None:
        values = {name: p.to("meta") for name, p in self.alone.named_parameters()}
        try:
            with torch.no_grad():
                found = functional_call(self.alone, values, (torch.empty(shape, dtype=self.dtype, device="meta"),))
        except (RuntimeError, ValueError, NotImplementedError):
            return None
        right = isinstance(found, Tensor) and found.dtype is self.dtype and found.ndim and found.shape[0] == shape[0]
        return found.shape if right else None

    def leaves(self, network: Any, start: Any, rates: Any) -> tuple[tuple[bool, ...], list[Tensor]] | None:
        """Which arguments of the native op a gradient goes to, and these; None: autograd has to take it there."""
        if not start.plain_leaves or not self.native or any(map(has_gradient_hooks, start.tensors)):
            return None
        if not isinstance(rates, list) and not isinstance(rates, Tensor):
            return self.of_numbers[0], self.of_numbers[1] if not start.own else _there(network.spread(start.params))
        of = rates if isinstance(rates, list) else [rates]
        learned = [isinstance(r, Tensor) and r.requires_grad for r in of]
        if any(is_learned and not r.is_leaf for r, is_learned in zip(of, learned, strict=True)):
            return None
        spread = [bool(x) for x in network.spread(learned)] if isinstance(rates, list) else learned
        params = [p is not None for p in network.params]
        of = network.spread(of) if isinstance(rates, list) else of
        values = [
            *_there(network.spread(start.params)),
            *(r for r, is_learned in zip(of, spread, strict=True) if is_learned),
        ]
        return (*params, *spread, *NO_DATA), values

    def key(self, *of: Any) -> int:
        return self.keys.setdefault(of, len(self.keys) + 1)  # 0: nothing was done


def _there(values: list[Any]) -> list[Any]:
    return [x for x in values if x is not None]


def _mlp_outputs(network: Any, shape: torch.Size) -> torch.Size | None:
    weight, last = network.params[0], network.params[-2]
    rows, width = shape[0], shape[1:].numel()
    if network.width is not None:
        right = len(shape) > 2 and width == network.width
    else:
        right = network.flattens or len(shape) == 2
    return torch.Size((rows, last.shape[0])) if right and width == weight.shape[1] else None


def _conv_outputs(network: Any, shape: torch.Size) -> torch.Size | None:
    images = network.images_of(shape)
    if images is None:
        return None
    rows, channels, height, width = images
    for block, weight, is_linear in zip(network.blocks, network.params[:-2:4], network.lines, strict=True):
        if weight.shape[1] != channels * (height * width if is_linear else 1):
            return None
        if is_linear and (height, width) != (block[7], block[7]):
            return None
        channels, of_block = weight.shape[0], ConvBlock(*block)
        height, width = (convolved_side(of_block, side) for side in (height, width))
        if block[2] is not None and rows * height * width < 2:
            return None
        height, width = (pooled_side(of_block, side) for side in (height, width))
        if min(height, width) < 1:
            return None
    last = network.params[-2]
    return torch.Size((rows, last.shape[0])) if channels * height * width == last.shape[1] else None
