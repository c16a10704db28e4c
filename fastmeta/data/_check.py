"""Checks that the data sources share: `<op>: <what must hold>, got <what came>`."""

from __future__ import annotations

from typing import Any

import torch

from .task_generator import TaskGenerator


def positive(op: str, **counts: Any) -> None:
    """Every count is an int of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {value}")


def place(
    op: str, generator: torch.Generator | TaskGenerator | None, device: torch.device | str | None
) -> torch.device:
    """Where to draw: `device`, where a torch.Generator must be too; else the generator's device; else torch's default."""
    if generator is None or isinstance(generator, TaskGenerator):
        return torch.get_default_device() if device is None else torch.device(device)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, got {type(generator).__name__}")
    if device is None:
        return generator.device
    device = torch.device(device)
    if _numbered(generator.device) != _numbered(device):
        raise ValueError(f"{op}: generator must be on {device}, got one on {generator.device}")
    return device


def _numbered(device: torch.device) -> torch.device:
    """`cuda` and the like without a number mean the current one: the device that a new tensor lands on."""
    return device if device.index is not None else torch.empty(0, device=device).device
