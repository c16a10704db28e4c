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

FILES = ("out", "err")


@functools.cache
def _server() -> subprocess.Popen:
    command, env = [sys.executable, __file__], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run(*words, cwd=None, env=None, seconds=300) -> subprocess.CompletedProcess:
    """Python with these words: a script, -m and a module, or -c and a program, then arguments. With what it printed."""
    server, words = _server(), [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in FILES]
        where = {"cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ), "files": list(map(str, files))}
        print(json.dumps(where | {"words": words, "seconds": seconds}), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))


def _serve() -> None:
    """A fork for each line, one after the other."""
    importlib.import_module("torch._dynamo")  # and torch; optimisers import it

    gc.freeze()  # what a fork never touches stays shared
    for line in sys.stdin:
        process = multiprocessing.get_context("fork").Process(target=_become, kwargs=json.loads(line))
        process.start()
        process.join()
        print(process.exitcode, flush=True)
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
