"""Work in a child process that may be killed, may hang, and may take too much memory."""

import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import psutil
import torch


@dataclass(frozen=True)
class Ended:
    "How a child ended."

    answer: Any  # what the function returned; None if it did not
    error: str  # type and message of what it raised; "" if nothing
    trace: str  # the last lines of the traceback
    signal: int  # that ended it; 0 for none
    seconds: float
    left: tuple[int, ...] = ()  # processes of its own that outlived it by `patience`


@cache
def warm() -> None:
    "Load once, for all forks, what a run loads late; and no pool of threads, with which a fork may hang."
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    figure = plt.figure()
    figure.text(0, 0, "x")
    figure.savefig(io.BytesIO())
    plt.close(figure)


def quiet() -> None:
    "Send what is printed nowhere."
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _answer(work: Callable[[], Any], path: Path) -> None:
    "Run the work and leave what came of it in a file."
    try:
        found = {"answer": work(), "error": "", "trace": ""}
    except BaseException as error:
        found = {"answer": None, "error": f"{type(error).__module__}.{type(error).__name__}: {error}",
                 "trace": "".join(traceback.format_exception(error)[-3:])}
    path.write_text(json.dumps(found))


def run(
    work: Callable[[], Any],  # returns what JSON can hold
    limit_s: float = 600.0,  # then it is killed
    kill_s: float | None = None,  # kill it by SIGKILL after so long
    patience_s: float = 20.0,  # that its own children have to end after a kill
    before: Callable[[], None] = lambda: None,  # in the child, such as a limit
) -> Ended:
    "Run a function in a fork of this process. Only processes that it started are ever ended."
    warm()
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "answer.json", time.monotonic()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.setpgid(0, 0)
                quiet()
                before()
                _answer(work, path)
            os._exit(0)
        status, family = _wait(child, min(limit_s, kill_s or limit_s))
        left = _outlived(family, patience_s)
        found = json.loads(path.read_text()) if path.is_file() and path.stat().st_size else {}
        sig = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ended(found.get("answer"), found.get("error", ""), found.get("trace", ""), sig,
                     time.monotonic() - began, left)


def _wait(child: int, limit_s: float) -> tuple[int, list[psutil.Process]]:
    "Wait for a child; after the limit kill it, and it alone. Its status, and the processes that it had started."
    deadline, family = time.monotonic() + limit_s, []
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, family
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(child).children(recursive=True) or family
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], family
        time.sleep(0.01)


def _outlived(family: list[psutil.Process], patience_s: float) -> tuple[int, ...]:
    "The processes that did not end by themselves; they are ended now."
    _, left = psutil.wait_procs(family, timeout=patience_s)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return tuple(process.pid for process in left)


def limit_memory(more_mib: int) -> None:
    "Allow this process so much more address space than it has."
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + (more_mib << 20),) * 2)


class Worker:
    "A forked process that answers one request after another; one that hangs or dies is replaced."

    def __init__(self, serve: Callable[[Any], Any], memory_mib: int = 2048) -> None:
        self.serve, self.memory_mib, self.child = serve, memory_mib, 0

    def _start(self) -> None:
        warm()
        (ask_out, self.ask), (self.hear, answer_in) = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.child = os.fork()
        if self.child == 0:
            os.close(self.ask), os.close(self.hear)
            with suppress(BaseException):
                quiet()
                limit_memory(self.memory_mib)
                with os.fdopen(ask_out) as asked, os.fdopen(answer_in, "w") as said:
                    for line in asked:
                        said.write(json.dumps(self.serve(json.loads(line))) + "\n")
                        said.flush()
            os._exit(0)
        os.close(ask_out), os.close(answer_in)

    def __call__(self, request: Any, limit_s: float) -> Any:  # the answer, "hang", or "crash: signal"
        if not self.child:
            self._start()
        os.write(self.ask, (json.dumps(request) + "\n").encode())
        deadline, heard = time.monotonic() + limit_s, b""
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([self.hear], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.hear, 1 << 16) if ready else b""
            if not piece:
                return self._end("crash" if ready else "hang")
            heard += piece
        return json.loads(heard)

    def _end(self, why: str) -> str:
        "End a process that hangs, or see how it died."
        if why == "hang":
            os.kill(self.child, signal.SIGKILL)
        status = os.waitpid(self.child, 0)[1]
        os.close(self.ask), os.close(self.hear)
        self.child = 0
        return why if why == "hang" else f"crash: status {status}"

    def close(self) -> None:
        if self.child:
            self._end("hang")
