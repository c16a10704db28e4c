"""The operators of torch that run."""

from torch.utils._python_dispatch import TorchDispatchMode


class Called(TorchDispatchMode):
    """The names of torch's operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))
