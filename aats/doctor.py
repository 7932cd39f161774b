"""Whether this machine can run AATS: each check says what it found and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from aats.plugins import load, names

GROUPS = ("aats.policies", "aats.agents", "aats.methods", "aats.models", "aats.data")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    """What to do if it is not ok."""


def examine() -> Iterable[Check]:
    """Yield the findings one by one."""
    yield _python()
    yield _torch()
    yield _zmq()
    yield _guard("loopback", _loopback, "let programs bind 127.0.0.1")
    yield _guard("disk", _disk, "free space in the temporary folder, or set TMPDIR")
    yield from (_plugins(group) for group in GROUPS)
    yield _data()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _torch() -> Check:
    wanted = next(
        r.partition("==")[2]
        for r in importlib.metadata.requires("aats-network") or ()
        if r.startswith("torch==")
    )
    try:
        import torch
    except ImportError as missing:
        return Check("torch", False, str(missing), f"pip install torch=={wanted}")
    found = torch.__version__
    device = "CUDA" if torch.cuda.is_available() else "CPU"
    same = found.partition("+")[0] == wanted
    return Check("torch", same, f"{found} ({device})", f"pip install torch=={wanted}")


def _zmq() -> Check:
    import zmq

    found = f"libzmq {zmq.zmq_version()}, CURVE {'yes' if zmq.has('curve') else 'no'}"
    return Check("zmq", bool(zmq.has("curve")), found, "install a pyzmq wheel built with libsodium")


def _guard(name: str, check: Callable[[], str], advice: str) -> Check:
    try:
        return Check(name, True, check())
    except OSError as error:
        return Check(name, False, str(error), advice)


def _loopback() -> str:
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        caller.settimeout(5)
        caller.connect(listener.getsockname())
        return "127.0.0.1 can be bound and reached"


def _disk() -> str:
    """Do once what custody rests on: write, sync, rename."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        with part.open("wb") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        part.rename(Path(folder) / "whole")
        return f"{folder.rpartition('/')[0]} can be written, synced and renamed in"


def _plugins(group: str) -> Check:
    broken, known = [], names(group)
    for name in known:
        try:
            load(group, name)
        except Exception as error:  # noqa: BLE001  a stranger's module may raise anything
            broken.append(f"{name} ({type(error).__name__}: {error})")
    found = f"broken: {'; '.join(broken)}" if broken else ", ".join(known) or "none installed"
    return Check(group, not broken, found, "reinstall the distribution that provides it")


def _data() -> Check:
    root = os.environ.get("AATS_DATA", "")
    if not root:
        return Check("data", True, "AATS_DATA is not set; bundled data sets only")
    return Check("data", Path(root).is_dir(), root, "set AATS_DATA to a folder that is there")
