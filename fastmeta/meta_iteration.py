"""A meta-iteration: the gradient of the mean query loss of a meta-batch, and a step; on CUDA captured once and then replayed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .learners._learner import Learner, NetworkLearner
from .networks.chain import noise_of
from .optim import Adam

WARM_UP, WARM_UP_OF_DDP = 3, 11  # meta-iterations before a capture, as torch's notes on CUDA graphs ask for
LEAST_NCCL = (2, 9, 6)  # whose all-reduce goes into a graph
Losses = tuple[Tensor, Tensor]  # of each task [T], and their mean


def iteration_of(op: str, learner: nn.Module, optimiser: torch.optim.Optimizer, graph: bool = True) -> MetaIteration:
    """`graph`: as one where the learner lies on a CUDA device."""
    return (CapturedIteration if graph and _is_on_cuda(learner) else MetaIteration)(op, learner, optimiser)


def _is_on_cuda(learner: nn.Module) -> bool:
    return any(p.is_cuda for p in learner.parameters())


def check_learner(op: str, learner: Any) -> None:
    if not isinstance(learner, nn.Module) or not any(isinstance(part, Learner) for part in learner.modules()):
        got = type(learner).__name__
        raise TypeError(f"{op}: learner must be a learner of fastmeta, or a module around one, got {got}")


class MetaIteration:
    def __init__(self, op: str, learner: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.op, self.learner, self.optimiser = op, learner, optimiser

    def __call__(self, batch: Sequence[Tensor]) -> Losses:
        self.optimiser.zero_grad(set_to_none=True)
        if isinstance(self.learner, Learner):
            losses = self.learner.backward(*batch)
        else:  # by the module's own call and backward, in which it may average gradients over processes
            of_graph = self.learner(*batch)
            of_graph.mean().backward()
            losses = of_graph.detach()
        self.optimiser.step()
        return losses, losses.mean()


class CapturedIteration(MetaIteration):
    def __init__(self, op: str, learner: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        super().__init__(op, learner, optimiser)
        _refuse_uncapturable(op, optimiser)
        of_ddp = _refuse_processes(op, learner)
        self.device = next(learner.parameters()).device
        self.stream = torch.cuda.Stream(self.device)
        self.left = WARM_UP_OF_DDP if of_ddp else WARM_UP
        self.static: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Sequence[Tensor]) -> Losses:
        self._copy(batch)
        if self.left:
            self.left -= 1
            return self._warm_up()
        if self.graph is None:
            self.captured_with = self._settings()
            self.graph, self.found = self._captured()
        elif self.captured_with != self._settings():
            raise RuntimeError(
                f"{self.op}: the learner's mode and the optimiser's options must stay as they were captured, a rate that changes be a "
                f"tensor on the device, got {self._settings()} after {self.captured_with}"
            )
        self.graph.replay()
        found = self.found.clone()  # the next replay writes over the graph's own
        return found[:-1], found[-1]

    def _copy(self, batch: Sequence[Tensor]) -> None:
        """Into the memory that the graph reads."""
        if not self.static:
            self.static = [torch.empty_like(x, device=self.device) for x in batch]
        found, expected = ([(list(x.shape), x.dtype) for x in xs] for xs in (batch, self.static))
        if found != expected:
            raise ValueError(f"{self.op}: sampler must give meta-batches like the first, {expected}, got {found}")
        for static, x in zip(self.static, batch, strict=True):
            static.copy_(x, non_blocking=True)

    def _warm_up(self) -> Losses:
        """An ordinary meta-iteration on the stream of the capture; whatever is made only once is made in it."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        before = noise_of(self.static[0])
        with torch.cuda.stream(self.stream):
            found = super().__call__(self.static)
        current.wait_stream(self.stream)
        (cpu, _, cuda), (cpu_before, _, cuda_before) = noise_of(self.static[0]), before
        if not torch.equal(cpu, cpu_before):
            raise RuntimeError(
                f"{self.op}: random numbers must be drawn on the device, got a model that draws on the CPU"
            )
        if cuda is not None and cuda_before is not None and not torch.equal(cuda, cuda_before):
            for part in self.learner.modules():
                if isinstance(part, NetworkLearner):
                    raise RuntimeError(
                        f"{self.op}: a model inside an inner loop must draw no random numbers, which its way back would have to draw "
                        f"again, got one that does in {type(part).__name__}"
                    )
        return found

    def _captured(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph, and where it leaves the losses and, last, their mean."""
        graph, own = torch.cuda.CUDAGraph(), _generators(self.learner, self.device)
        for generator in own:
            graph.register_generator_state(generator)
        states = [(g, g.clone_state()) for g in (torch.cuda.default_generators[self.device.index or 0], *own)]
        try:  # the outer stream context leads back, whatever is raised
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                losses, mean = super().__call__(self.static)
                found = torch.cat((losses, mean[None]))
        except Exception as error:
            for generator, state in states:  # it still thinks itself captured, and would refuse to draw
                generator.graphsafe_set_state(state)
            cause = error.__context__ or error  # what happened before the capture could not be ended
            raise RuntimeError(
                f"{self.op}: a meta-iteration must go into a CUDA graph, where no value can be asked for, got {cause}"
            ) from cause
        return graph, found

    def _settings(self) -> tuple[Any, ...]:
        """What a graph keeps as a number; of a tensor, which one it is."""
        groups = ({name: x for name, x in g.items() if name != "params"} for g in self.optimiser.param_groups)
        values = [(n, id(x) if isinstance(x, Tensor) else x) for group in groups for n, x in group.items()]
        return self.learner.training, *values


def _refuse_uncapturable(op: str, optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        if isinstance(optimiser, Adam):
            group["capturable"] = True  # as a fused one is, whose steps are counted on the device
        name, rate = type(optimiser).__name__, group.get("lr")
        if not group.get("capturable", isinstance(optimiser, torch.optim.SGD)):
            raise ValueError(f"{op}: optimiser must be made with capturable=True, got {name} without")
        if isinstance(rate, Tensor) and rate.device != group["params"][0].device:
            raise ValueError(f"{op}: optimiser's rate must be a number or on the device, got a tensor on {rate.device}")


def _refuse_processes(op: str, learner: nn.Module) -> bool:
    """Whether gradients are averaged by DistributedDataParallel; RuntimeError where a graph cannot hold that."""
    if any(type(part).__name__.startswith("FSDP") for part in learner.modules()):
        raise RuntimeError(
            f"{op}: a learner must be whole on its device, got a sharded one, whose hooks do not go into a graph"
        )
    groups = [part.process_group for part in learner.modules() if isinstance(part, DistributedDataParallel)]
    for group in groups:
        backend = dist.get_backend(group)
        if backend != "nccl":
            raise RuntimeError(
                f"{op}: gradients must be averaged over NCCL, whose kernels go into a graph, got {backend}"
            )
        if (version := torch.cuda.nccl.version()) < LEAST_NCCL:
            raise RuntimeError(
                f"{op}: NCCL must be at least {LEAST_NCCL}, whose all-reduce goes into a graph, got {version}"
            )
        if os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING") != "0":
            raise RuntimeError(
                f"{op}: TORCH_NCCL_ASYNC_ERROR_HANDLING must be 0 before init_process_group, or NCCL's watchdog asks for events that "
                "are captured, got another value"
            )
    return bool(groups)


def _generators(learner: nn.Module, device: torch.device) -> list[torch.Generator]:
    """Those that modules keep, beside the device's own, which a capture knows."""
    kept = [x for part in learner.modules() for x in vars(part).values() if isinstance(x, torch.Generator)]
    return [g for g in dict.fromkeys(kept) if g.device.type == device.type]
