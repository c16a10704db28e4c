"""Files of a training that a crash at any moment leaves whole: checkpoints, and a log that a resumed run goes on with."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

COLUMNS = ["step", "loss", "error"]


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """`fill` writes a file beside `path`, which takes its place when it is on the disk: a reader sees the old or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    write(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


class Log:
    """`log.csv` in a folder, and TensorBoard's files there if asked for; of an earlier run it keeps the lines up to `step`."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        path = folder / "log.csv"
        kept = [line for line in _lines(path) if int(line[0]) <= step]
        text = "".join(",".join(line) + "\n" for line in (COLUMNS, *kept))
        write(path, lambda file: file.write(text.encode()))
        self.file = path.open("a", newline="")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder, purge_step=step + 1)

    def add(self, step: int, loss: float, error: float) -> None:
        csv.writer(self.file, lineterminator="\n").writerow([step, loss, error])
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.add_scalar("loss", loss, step)
            self.board.add_scalar("error", error, step)
            self.board.flush()


def _lines(path: Path) -> list[list[str]]:
    """The whole lines of an earlier log, without its header."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(line for line in file if line.endswith("\n")))[1:]
