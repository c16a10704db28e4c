"""Stand-ins for torch.cuda's streams and graphs on CPU tensors. A capture records torch's operations and leaves nothing behind; a replay
runs them again on the same memory. So a value that went through Python stays what it was in the capture, as on a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)  # for the device


class Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Generator:
    state = "free"

    def clone_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        self.state = state


class Graph(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log, self.calls, self.before = log, [], {}  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        of_states = func is aten.equal.default and args[0].dtype == torch.uint8  # of the CPU's generator
        if func in WAITING and not of_states:
            raise RuntimeError("operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, (*args, *kwargs.values()), strict=False):
            if argument.is_write:
                for x in tree_leaves(value):
                    self.before.setdefault(id(x), (x, x.clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    def leave_nothing(self) -> None:
        with torch.no_grad():
            for x, value in self.before.values():
                x.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        self.log.append("replay")
        for func, args, kwargs, found in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def register_generator_state(self, generator: Any) -> None:
        self.log.append("a generator of a module's own")


def standins(log: list[str]) -> dict[str, Any]:
    """For names of torch.cuda."""
    current = Stream(log, "current")
    generator = Generator()

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield

    @contextlib.contextmanager
    def capture(graph: Graph, stream: Stream) -> Iterator[None]:
        log.append(f"capture on {stream.name}")
        generator.state, noise = "captured", torch.get_rng_state()
        try:
            with graph:
                yield
        except RuntimeError:
            raise ValueError("the capture could not be ended") from None
        finally:
            graph.leave_nothing()
            torch.set_rng_state(noise)
        generator.state = "free"

    return {
        "Stream": lambda device: Stream(log, "side"), "CUDAGraph": lambda: Graph(log), "graph": capture, "stream": on,
        "current_stream": lambda device: current, "default_generators": [generator],
    }  # fmt: skip
