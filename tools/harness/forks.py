"""Runs Python programs as forks of a process that has imported torch, which takes longer than most of what tests run. They share
its hash seed and memory layout: of two runs that must agree, one belongs in a process of its own."""

import atexit
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path


@functools.cache
def _server() -> subprocess.Popen:
    command, env = [sys.executable, __file__], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(**request):
    print(json.dumps(request), file=_server().stdin, flush=True)
    return json.loads(_server().stdout.readline())


class Fork:
    """Python with these words: a script, -m and a module, or -c and a program, then arguments. As subprocess.Popen has it."""

    def __init__(self, *words, cwd=None, env=None, seconds=300):
        self.folder, self.args, self.returncode = tempfile.TemporaryDirectory(), [str(word) for word in words], None
        self.files = [Path(self.folder.name) / name for name in ("out", "err")]
        where = {"cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ), "files": list(map(str, self.files))}
        self.pid = _ask(words=self.args, seconds=seconds, **where)

    def poll(self, seconds=0):
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid, seconds=seconds)
        return self.returncode

    def communicate(self, timeout=None):
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return [file.read_text() for file in self.files]

    def send_signal(self, sent):
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(*words, **options) -> subprocess.CompletedProcess:
    """As subprocess.run, with what it printed."""
    fork = Fork(*words, **options)
    printed = fork.communicate()
    return subprocess.CompletedProcess(fork.args, fork.returncode, *printed)


def _serve() -> None:
    """For a line with words a fork, whose number is answered; for one with such a number its exit status, or none by then."""
    importlib.import_module("torch._dynamo")  # and torch; optimisers import it
    processes, context = {}, multiprocessing.get_context("fork")
    gc.freeze()  # what a fork never touches stays shared
    for request in map(json.loads, sys.stdin):
        if "words" in request:
            process = context.Process(target=_become, kwargs=request)
            process.start()
            processes[process.pid], answer = process, process.pid
        else:
            processes[request["pid"]].join(request["seconds"])
            answer = processes[request["pid"]].exitcode
        print(json.dumps(answer), flush=True)
    os._exit(0)  # at once: there is nothing to put away


def _become(words: list[str], cwd: str, env: dict[str, str], files: list[str], seconds: int) -> None:
    signal.alarm(seconds)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in zip((0, 1, 2), (os.devnull, *files), strict=True):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    kind, program = (words[0], words[1]) if words[0] in ("-c", "-m") else (None, words[0])
    sys.argv = [words[0] if kind == "-c" else program, *words[2 if kind else 1 :]]
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [str(Path(program).parent) if kind is None else "" if kind == "-c" else cwd, *added]
    try:
        if kind == "-c":
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(program, "<string>", "exec"), main.__dict__)
        elif kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


if __name__ == "__main__":
    _serve()
