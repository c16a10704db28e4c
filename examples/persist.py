"""Files of a training that a crash at any moment leaves whole: checkpoints, and a log that a resumed run goes on with.

What is wrong with a file is an error that names it: OSError where it cannot be read or written, ValueError where it is damaged.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

COLUMNS = ["step", "loss", "error"]


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A full disk, and the like, says which file it hit."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """`fill` writes a file beside `path`, which takes its place when it is on the disk: a reader sees the old or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def save(path: Path, state: dict[str, Any]) -> None:
    whole = io.BytesIO()  # torch.save into a file hides why the file could not be written
    torch.save(state, whole)
    write(path, lambda file: file.write(whole.getbuffer()))


def load(path: Path) -> Any:
    """What `save` wrote. torch.load alone does not look at the checksums: a changed number would pass."""
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            wrong = file.testzip()
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} is wrong")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zipfile and torch come upon in a broken file
        raise ValueError(f"{path} must be a file saved by these programs, got a damaged or another one") from error


class Log:
    """`log.csv` in a folder, and TensorBoard's files there if asked for; of an earlier run it keeps the lines up to `step`."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        text = "".join(line + "\n" for line in (",".join(COLUMNS), *lines(self.path, step)))
        write(self.path, lambda file: file.write(text.encode()))
        self.file = self.path.open("a", newline="")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, step: int, loss: float, error: float) -> None:
        with named(self.path):
            csv.writer(self.file, lineterminator="\n").writerow([step, loss, error])
            self.file.flush()
            os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.add_scalar("loss", loss, step)
            self.board.add_scalar("error", error, step)
            self.board.flush()


def lines(path: Path, step: int) -> list[str]:
    """The lines of an earlier log up to that of `step`, where its checkpoint is; a log that was deleted has none.

    ValueError unless each has a step above the last, a loss and an error, and the log gets as far as `step`.
    """
    if step == 0 or not path.exists():
        return []
    head, *rest = path.read_bytes().decode("ascii", "replace").split("\n")
    kept: list[str] = []
    last, got = 0, head
    if head == ",".join(COLUMNS):
        for got in rest[:-1]:  # what stands after the last newline, a crash has cut off
            number = _step(got)
            if not last < number <= step:
                break
            kept.append(got)
            last, got = number, "no more"
            if last == step:
                return kept
    raise ValueError(
        f"{path} must have lines '{','.join(COLUMNS)}' up to step {step}, got {got[:60]!r} after step {last}"
    )


def _step(line: str) -> int:
    """Of a line of the log; 0 where it is none."""
    try:
        step, loss, error = line.split(",")
        return int(step) if step.isdecimal() and float(loss) is not None and float(error) is not None else 0
    except ValueError:
        return 0
