"""Files of a training that a crash at any moment leaves whole: checkpoints, and a log that a resumed run goes on with.

What is wrong with a file is an error that names it: OSError where it cannot be read or written, ValueError where it is damaged.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

HEAD = b"step,loss,error\n"


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


@contextlib.contextmanager
def claim(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the folder, made if it is not there, is this process's own until the block ends, or the process does.

    `wait`: for another that has it. Only those that ask here see a claim.
    """
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


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
    """`log.csv` in a folder, and TensorBoard's files there if asked for; of an earlier run it keeps what its checkpoint knew of.

    mark: the length and the checksum of the log so far, for the checkpoint; None begins anew.
    """

    def __init__(self, folder: Path, step: int, mark: dict[str, int] | None, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        begun = kept(self.path, mark)
        write(self.path, lambda file: file.write(begun))
        self.mark = mark_of(begun)
        self.file = self.path.open("ab")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, step: int, loss: float, error: float) -> None:
        line = f"{step},{loss},{error}\n".encode()
        with named(self.path):
            self.file.write(line)
            self.file.flush()
            os.fsync(self.file.fileno())
        self.mark = mark_of(line, self.mark)
        if self.board is not None:
            self.board.add_scalar("loss", loss, step)
            self.board.add_scalar("error", error, step)
            self.board.flush()


def mark_of(text: bytes, before: dict[str, int] | None = None) -> dict[str, int]:
    """Of a log, or of a part that comes after another."""
    before = before or {"bytes": 0, "crc32": 0}
    return {"bytes": before["bytes"] + len(text), "crc32": zlib.crc32(text, before["crc32"])}


def kept(path: Path, mark: dict[str, int] | None) -> bytes:
    """What a log held when its checkpoint was saved; a log that was deleted begins anew."""
    if mark is None or not path.exists():
        return HEAD
    found = path.read_bytes()[: mark["bytes"]]
    if mark_of(found) != mark:
        raise ValueError(f"{path} must begin with the {mark['bytes']} bytes that its checkpoint knows of, got others")
    return found
