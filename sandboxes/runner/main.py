"""Where the runner begins: it hears what to confine, prepares, and becomes server and nursery."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

from sandboxes import wire
from sandboxes.runner import confine, system
from sandboxes.runner.nursery import Nursery
from sandboxes.runner.server import Server

if TYPE_CHECKING:
    from typing import NoReturn

_PIECE = 2**16


def prepare(confinement: confine.Confinement) -> None:
    """Make everything ready that all sessions share."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.path.extend(confinement.packages)
    for name in confinement.preload:
        importlib.import_module(name)
    if confinement.drop_uid is not None:
        system.drop_bounding_set()
        confine.become(confinement.drop_uid)
        system.set_dumpable()  # sessions map their own user, in a file that belongs to this process
    if confinement.seccomp:
        system.no_new_privileges()
    gc.collect()
    gc.freeze()  # what is never touched is never copied for a session


def channel_of(argument: str) -> tuple[int, int]:
    """Where to read from and write to; afterwards the standard streams are free."""
    if argument != "stdio":
        return int(argument), int(argument)
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return source, sink


def main() -> NoReturn:
    """Take the descriptor of the channel, or `stdio`; the first message is the confinement."""
    confine.ignore_interrupts()
    source, sink = channel_of(sys.argv[1])
    for descriptor in {source, sink}:
        os.set_inheritable(descriptor, False)
    frames = wire.Frames()
    while (body := frames.take()) is None:
        data = os.read(source, _PIECE)
        if not data:
            os._exit(0)
        frames.feed(data)
    confinement = confine.Confinement(**wire.decode(body))
    prepare(confinement)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        for descriptor in {source, sink, ours.detach()}:
            os.close(descriptor)
        Nursery(confinement, theirs).serve()
    theirs.close()
    Server(confinement, ours, source, sink).serve()
