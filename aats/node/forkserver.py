"""A small single-threaded process that forks children on request: in milliseconds, torch loaded.

    launcher -- fork server -- node daemon -- worker zygote -- one child a task
                            `- node daemon -- ...

Both the fork server of a launcher (its children are node daemons) and the worker zygote of a
daemon (its children each run one task) are this process; they differ in what a child does.
Importing torch and torch._dynamo costs seconds and 230 MB; a child that inherits them costs
about 20 ms and 8-19 MB. A process forks safely only while it has one thread, so a server
is started before its owner opens a socket context, or as a fresh interpreter.

Nothing outlives its parent: a server whose owner is gone (end of file on the control socket)
kills its children, and on Linux the kernel kills a child whose parent died.

    python -m aats.node.forkserver FD daemon|worker
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aats import plugins
from aats.errors import LocalError

ChildMain = Callable[[str, list[int]], None]
"""What a child does with its argument and the file descriptors sent along; returning is success."""

PLUGIN_GROUPS = ("aats.policies", "aats.agents", "aats.methods", "aats.models")
MAX_REQUEST_BYTES = 1 << 16
MAX_FDS = 4
_PR_SET_PDEATHSIG = 1
_FATAL = 70
"""Exit status of a child whose main raised (EX_SOFTWARE)."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when process `parent`, its parent, dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_FATAL)


def preload_plugins() -> None:
    """Load every installed plug-in, so that no child has to; a broken one fails when it is used."""
    for group in PLUGIN_GROUPS:
        for name in plugins.names(group):
            with contextlib.suppress(ImportError, AttributeError):
                plugins.load(group, name)


# --- the server -------------------------------------------------------------------------------


class _Server:
    """The loop of a fork server; `main` runs in the children only."""

    def __init__(self, control: socket.socket, main: ChildMain) -> None:
        self._control, self._main = control, main
        self._children: dict[str, int] = {}
        self._wake_r, self._wake_w = socket.socketpair()

    def run(self) -> None:
        """Serve until the owner closes its end; then kill and reap every child."""
        self._wake_w.setblocking(False)
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_r, selectors.EVENT_READ)
            self._report({"ready": os.getpid()})
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_r in ready:
                    self._wake_r.recv(4096)
                    self._reap()
                if self._control in ready and not self._serve_one():
                    break
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._children.values():
            os.waitpid(pid, 0)

    def _serve_one(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, MAX_FDS)
        except ConnectionError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "fork":
            self._fork(request["name"], request["argument"], list(fds))
        elif request["name"] in self._children:
            os.kill(self._children[request["name"]], request["signal"])
        return True

    def _fork(self, name: str, argument: str, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as e:
            self._report({"exit": name, "code": _FATAL, "error": str(e)})
        else:
            if not pid:
                self._become_child(parent, argument, fds)
            self._children[name] = pid
            self._report({"started": name, "pid": pid})
        for fd in fds:
            os.close(fd)

    def _become_child(self, parent: int, argument: str, fds: list[int]) -> NoReturn:
        code = _FATAL
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for end in (self._control, self._wake_r, self._wake_w):
                end.close()
            os.setpgid(0, 0)
            self._main(argument, fds)
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else _FATAL
        except BaseException:  # noqa: BLE001 - the top of a process: report it, then end it
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for name, pid in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._children[name]
                self._report({"exit": name, "code": os.waitstatus_to_exitcode(status)})

    def _report(self, report: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._control.send(json.dumps(report).encode())


def serve(control: socket.socket, main: ChildMain) -> None:
    """Fork children on the requests that come over `control`, until its other end is closed."""
    gc.collect()
    gc.freeze()
    _Server(control, main).run()


# --- the owner's end --------------------------------------------------------------------------


class ForkServerLost(LocalError):
    """The fork server itself is gone (killed from outside)."""


class ForkServer:
    """The owner's end of a fork server: start children by name, signal them, hear of their end.

    `on_exit(name, code)` is called on the event loop; `code` is negative for a signal, as in
    `subprocess`. One event loop at a time; `attach` first.
    """

    def __init__(self, control: socket.socket, pid: int, process: subprocess.Popen[bytes] | None):
        self._control, self._pid, self._process = control, pid, process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_exit: Callable[[str, int], None] = lambda name, code: None
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._names: dict[str, None] = {}
        self.pids: dict[str, int] = {}
        """Living children by name."""

    @classmethod
    def fork(cls, main: ChildMain) -> ForkServer:
        """Return a server forked from this process, which must have no other thread."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                ours.close()
                die_with_parent(parent)
                os.setpgid(0, 0)
                serve(theirs, main)
            finally:
                os._exit(0)
        theirs.close()
        return cls(ours, pid, None)

    @classmethod
    def spawn(cls, role: str, *, log: Path | None = None) -> ForkServer:
        """Return a server in a fresh interpreter, safe to start from any process.

        Args:
            role: "daemon" (children are node daemons) or "worker" (children run one task).
            log: Where its standard error goes; None for ours.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with contextlib.ExitStack() as stack:
            errors = stack.enter_context(log.open("ab")) if log else None
            process = subprocess.Popen(
                [sys.executable, "-m", "aats.node.forkserver", str(theirs.fileno()), role],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **one_thread},
                start_new_session=True,
            )
        theirs.close()
        return cls(ours, process.pid, process)

    def attach(self, on_exit: Callable[[str, int], None]) -> None:
        """Listen on the running event loop; call `on_exit` for each child that ends."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._receive)

    def detach(self) -> None:
        """Listen no more; another event loop may attach."""
        if self._loop is not None:
            self._loop.remove_reader(self._control)
            self._loop = None

    async def ready(self) -> None:
        """Wait until the server has loaded everything.

        Raises:
            ForkServerLost: If it ended instead.
        """
        waits = [asyncio.ensure_future(e.wait()) for e in (self._ready, self._lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._ready.is_set():
            raise ForkServerLost(f"fork server (process {self._pid}) ended while it started")

    @property
    def is_lost(self) -> bool:
        """Whether the server is gone; its children are too."""
        return self._lost.is_set()

    def start(self, name: str, argument: str, fds: Sequence[int] = ()) -> None:
        """Fork a child. `name` must not be in use; `fds` may be closed on return.

        Raises:
            ForkServerLost: If the server is gone.
        """
        self._send({"do": "fork", "name": name, "argument": argument}, fds)
        self._names[name] = None

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a child; no effect if it has ended."""
        with contextlib.suppress(ForkServerLost):
            self._send({"do": "kill", "name": name, "signal": int(number)})

    async def close(self) -> None:
        """End the server and every child of it, at once; return when the server is gone."""
        self.detach()
        self._control.close()
        self._lost.set()
        await asyncio.to_thread(self._wait)

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait()
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    def _send(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._lost.is_set():
            raise ForkServerLost(f"fork server (process {self._pid}) is gone")
        try:
            # A full buffer blocks: the server does nothing but read it.
            self._control.setblocking(True)
            socket.send_fds(self._control, [json.dumps(request).encode()], list(fds))
        except OSError as e:
            raise ForkServerLost(f"fork server (process {self._pid}) is gone: {e}") from e
        finally:
            self._control.setblocking(False)

    def _receive(self) -> None:
        while True:
            try:
                data = self._control.recv(MAX_REQUEST_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._server_ended()
                return
            self._handle(json.loads(data))

    def _handle(self, report: dict[str, Any]) -> None:
        if "ready" in report:
            self._ready.set()
        elif "started" in report:
            self.pids[report["started"]] = report["pid"]
        else:
            self._ended(report["exit"], report["code"])

    def _server_ended(self) -> None:
        self.detach()
        self._lost.set()
        for name in list(self._names):
            self._ended(name, -signal.SIGKILL)

    def _ended(self, name: str, code: int) -> None:
        self._names.pop(name, None)
        self.pids.pop(name, None)
        self._on_exit(name, code)


def _main(arguments: list[str]) -> None:
    fd, role = int(arguments[0]), arguments[1]
    from aats.node import host, worker
    from aats.roles.runner import fork_safe_warmup

    fork_safe_warmup()
    preload_plugins()
    worker.rehearse()
    mains: dict[str, ChildMain] = {"daemon": host.child_main, "worker": worker.child_main}
    serve(socket.socket(fileno=fd), mains[role])


if __name__ == "__main__":
    _main(sys.argv[1:])
