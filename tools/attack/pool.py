"""Processes that run cases and may crash: a dead one is a finding, and the next starts where it stood."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from . import cases
from .draw import NO_TABLE, Draw

Outcome = dict[str, Any]
LIMIT = 90  # seconds for a case
MEMORY = 24 << 30  # of address space
CASES = 200  # of a process: what came before a case stays short


def _serve(pipe: Connection, log: int, no_table: bool) -> None:
    os.dup2(log, 2)
    os.dup2(log, 1)
    faulthandler.enable(2)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["FASTMETA_DLPACK"] = "0" if no_table else "1"  # read when the native kernels are first asked for
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty is filled with NaN
    while True:
        token, only = pipe.recv()
        name = cases.name_of(token)
        pipe.send(name)
        pipe.send(cases.run(token) if only in (None, name) else {"status": "skipped"})


class Worker:
    def __init__(self, no_table: bool) -> None:
        context = multiprocessing.get_context("fork")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the worker lives)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.log.fileno(), no_table), daemon=True)
        self.process.start()
        theirs.close()
        self.no_table, self.history, self.name, self.since = no_table, [], "", 0.0

    def send(self, token: str, only: str | None) -> None:
        self.history.append(token)
        self.name, self.since = "", time.monotonic()
        self.pipe.send((token, only))

    def receive(self) -> Outcome | None:
        """The outcome of the case, or None where only its name has come."""
        try:
            found = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            what = signal.Signals(-code).name if code < 0 else f"exit {code}"
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").splitlines()
            places = [line.strip() for line in lines if line.lstrip().startswith("File")]
            return self._finding(f"crash: {what}", " < ".join(places[:4]) or " ".join(lines[-3:]))
        if isinstance(found, str):
            self.name = found
            return None
        return found

    def late(self) -> Outcome | None:
        return self._finding(f"no answer in {LIMIT} s", "") if time.monotonic() - self.since > LIMIT else None

    def _finding(self, kind: str, detail: str) -> Outcome:
        return {"name": self.name, "status": "finding", "kind": kind, "detail": detail, "notes": "", "seen": []}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.log.close()


class Pool:
    def __init__(self, processes: int, only: str | None = None) -> None:
        self.processes, self.only = processes, only
        self.idle: list[Worker] = []

    def run(self, tokens: Iterable[str]) -> Iterator[tuple[list[str], Outcome]]:
        """Of each case the tokens that its process had before it, its own at the end, and the outcome."""
        waiting, busy, remaining = [], {}, iter(tokens)
        while True:
            while len(busy) < self.processes and (token := waiting.pop() if waiting else next(remaining, None)):
                worker = self._worker(Draw(token).odd(*NO_TABLE))
                worker.send(token, self.only)
                busy[worker.pipe] = worker
            if not busy:
                return
            ready = wait(list(busy), timeout=1)
            for pipe, worker in list(busy.items()):
                outcome = worker.receive() if pipe in ready else worker.late()
                if outcome is None:
                    continue
                del busy[pipe]
                history = list(worker.history)
                if outcome["status"] == "finding" or len(history) >= CASES:
                    worker.stop()
                else:
                    self.idle.append(worker)
                yield history, outcome

    def _worker(self, no_table: bool) -> Worker:
        found = next((w for w in self.idle if w.no_table == no_table), None)
        if found is None:
            return Worker(no_table)
        self.idle.remove(found)
        return found

    def alone(self, tokens: str) -> Outcome:
        """Cases that are joined by commas, in a new process: the last one's outcome, or the first finding."""
        worker = Worker(Draw(tokens.split(",")[-1]).odd(*NO_TABLE))
        outcome: Outcome = {}
        for token in tokens.split(","):
            worker.send(token, None)
            answer = None
            while answer is None:
                answer = worker.receive() if worker.pipe.poll(1) else worker.late()
            outcome = answer
            if outcome["status"] == "finding":
                break
        worker.stop()
        return outcome

    def close(self) -> None:
        for worker in self.idle:
            worker.stop()
