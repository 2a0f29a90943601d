"""Starts Python programs without their imports: it has imported the heavy packages once, and forks for each.

    python server.py FOLDER

`launcher.py` asks.  There is a socket in FOLDER for each of KINDS, and behind each a process that has imported what
the kind needs: this one for `plain`, for the others one that it forks when they are first asked for.

A program so started has its own process, session, environment, arguments and streams, as a new one has.  What it does
not show: that the modules import in a fresh process, in whatever order a program asks for them, and so what is told of
one that is missing; that processes agree though their strings hash unlike (these share the server's seed); and that
the interpreter comes down cleanly behind the last of `atexit` (that alone would cost half a second a fork).  The tests
that start a real Python, `conftest.ipt(fresh=True)` and torchrun itself among them, show these.  Forking is sound where
there is one thread and no process group yet: Python warns where there are more.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import marshal
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import spawn  # noqa: F401 - it remembers sys.executable as it is imported: the real one
from pathlib import Path
from typing import Any

KINDS = {
    "plain": (
        *("torch", "torch.distributed.run", "pyarrow.parquet", "pandas", "numpy.random", "psutil", "tokenizers"),
        *("megatron_ipt.cli.main", "data_prep.blend", "data_prep.synthesis"),
    ),
    "transformers": ("transformers.models.llama.modeling_llama", "lm_eval.models.huggingface", "scipy.io"),
    "megatron": ("megatron_ipt.pretrain", "megatron_ipt.convert.load_hf", "megatron_ipt.convert.export_hf"),
}
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that this process gets when the one that started it is gone."""


class Server:
    """One process: the sockets it listens on, and the programs it has started."""

    def __init__(self, listening: dict[str, socket.socket]) -> None:
        self.listening, self.running = listening, dict[int, tuple[socket.socket, bool]]()
        self.selector = selectors.DefaultSelector()
        self.ended, theirs = os.pipe()
        os.set_blocking(theirs, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(theirs)
        self.wakes = theirs
        self.selector.register(self.ended, selectors.EVENT_READ, self.reap)
        for kind, place in listening.items():
            self.selector.register(place, selectors.EVENT_READ, lambda kind=kind: self.asked(kind))

    def serve(self, own: str) -> Callable[[], None]:
        """Answer until a fork comes out of here, with what it is to run."""
        self.own = own
        while True:
            for key, _ in self.selector.select():
                if become := key.data():
                    return become

    def asked(self, kind: str) -> Callable[[], None] | None:
        if kind != self.own:
            return self.divide(kind)
        connection, _ = self.listening[kind].accept()
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        with connection.makefile("rb") as file:
            request = marshal.loads(file.read(int.from_bytes(size, "little")))
        if process := os.fork():
            for stream in streams:
                os.close(stream)
            leads = request[3]
            self.running[process] = connection, leads
            self.selector.register(connection, selectors.EVENT_READ, lambda: self.heard(process))
            return None
        connection.close()
        self.leave()
        for place in self.listening.values():
            place.close()
        return lambda: become(request, streams)

    def divide(self, kind: str) -> Callable[[], None] | None:
        """Fork the server of a kind, which listens where it was asked."""
        place = self.listening.pop(kind)
        if not os.fork():
            self.leave()
            for other in self.listening.values():
                other.close()
            return lambda: warm(kind, {kind: place})
        self.selector.unregister(place)
        place.close()
        return None

    def leave(self) -> None:
        """In a fork: what is the server's alone is closed."""
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        os.close(self.ended)
        os.close(self.wakes)
        for connection, _ in self.running.values():
            connection.close()

    def heard(self, process: int) -> None:
        """A signal to pass on; nothing more: who asked was killed."""
        if process not in self.running:  # it has ended meanwhile
            return
        connection, leads = self.running[process]
        told = b""
        with contextlib.suppress(ConnectionError):
            told = connection.recv(16)
        for number in told or [signal.SIGKILL]:
            os.kill(process, number)
            if leads:
                with contextlib.suppress(ProcessLookupError):  # it has no group yet
                    os.killpg(process, number)
        if not told:
            self.selector.unregister(connection)

    def reap(self) -> None:
        os.read(self.ended, 4096)
        for process, (connection, _) in [*self.running.items()]:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                del self.running[process]
                with contextlib.suppress(KeyError):  # who asked is gone
                    self.selector.unregister(connection)
                with contextlib.suppress(ConnectionError), connection:
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))


def die_with_parent() -> None:
    """Tests that are interrupted leave nobody behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become(request: tuple[list[str], dict[str, str], str, bool, bool], streams: Sequence[int]) -> None:
    """Be `python ARGUMENTS`."""
    arguments, variables, folder, _, unbuffered = request
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background has both ignored
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[attr-defined]
    code = 0
    try:
        run(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if code and not isinstance(end.code, int):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code)


def run(arguments: list[str]) -> None:
    """The program, as `__main__`."""
    if arguments[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), arguments[1:]
        sys.modules.pop(arguments[1], None)  # a fresh `python -m` has not imported it either: runpy would warn
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *arguments[2:]]
        main: Any = sys.modules["__main__"]
        names = {"__name__": "__main__", "__builtins__": __builtins__}
        main.__dict__.update(names)
        exec(compile(arguments[1], "<string>", "exec"), names)
    else:
        sys.path[0], sys.argv = str(Path(arguments[0]).resolve().parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")


def leave(code: int) -> None:
    """As an interpreter does, but for taking down its modules: a fork would copy what it takes down."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def warm(kind: str, listening: dict[str, socket.socket]) -> None:
    for module in KINDS[kind]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what a fork looks through, it copies: leave out what is imported
    Server(listening).serve(kind)()


def start(folder: Path) -> None:
    """Listen, write the stand-in of `python` and say when it may be called."""
    listening = {}
    for kind in KINDS:
        listening[kind] = place = socket.socket(socket.AF_UNIX)
        place.bind(str(folder / kind))
        place.listen(64)
    python = folder / "python"
    script = Path(__file__).with_name("launcher.py")
    (folder / "started").write_bytes(marshal.dumps((sys.executable, dict(os.environ))))
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "{folder}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    python.with_name("python3").symlink_to(python)
    sys.executable = str(python)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    warm("plain", listening)


if __name__ == "__main__":
    die_with_parent()
    start(Path(sys.argv[1]))
