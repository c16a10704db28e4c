"""Commands with a limit, their lines in a log as they come."""

import contextlib
import os
import signal
import subprocess
import threading

from harness.places import ROOT

WORK = ROOT / "build/gpu"
GRACE = 10  # s between SIGINT, at which a program can still tell what it has, and SIGKILL


def run(command, seconds, log, on_line=lambda line: None, cwd=WORK, grace=GRACE, **env):
    """The exit status of a command, None where it was stopped after so many seconds. Its lines go to the log and to on_line."""
    stopped = threading.Event()
    cwd.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=os.environ | env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process,
    ):  # fmt: skip

        def stop(by):
            stopped.set()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, by)

        limits = [
            threading.Timer(seconds, stop, [signal.SIGINT]),
            threading.Timer(seconds + grace, stop, [signal.SIGKILL]),
        ]
        for limit in limits:
            limit.start()
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                on_line(line.rstrip("\n"))
        except BaseException:  # also the end of this process
            stop(signal.SIGKILL)
            raise
        finally:
            for limit in limits:
                limit.cancel()
    return None if stopped.is_set() else process.returncode


def last_line(log):
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else "no output"


def ended(status):
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
