"""The trainer's Unix socket: lets in whom the system says may come in, and passes bytes on to the gRPC server.

Invariants: the socket has mode 0600, or 0660 where other users are allowed in; every connection's user is asked of the
kernel (SO_PEERCRED) before a byte of it is read; gRPC's own socket lies in a folder of mode 0700 and is told to nobody.

gRPC cannot tell who is at the other end of a Unix socket, hence this relay. Where the system has no SO_PEERCRED, the
file's mode is all there is.
"""

import logging
import os
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fedretrain import atomic

from .wire import socket_path

log = logging.getLogger(__name__)

_BUFFER_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class Door:
    """Listens on ``path`` until ``close``.

    Args:
        path: The socket; what lay there from an earlier start is removed.
        inside: The gRPC server's socket.
        users: Ids of other users who may connect.

    Raises:
        ConfigurationError: The path is too long for a Unix socket.
        MachineError: It cannot be made.
    """

    def __init__(self, path: Path, inside: Path, users: Collection[int] = ()) -> None:
        self._path, self._inside = path, inside
        self._users = {os.getuid(), *users}
        self._listener = socket.socket(socket.AF_UNIX)
        name = socket_path(path)
        with atomic.disk_errors(path, "listen"):
            path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._listener.bind(name)
            finally:
                os.umask(before)
            if users:
                path.chmod(0o660)
            self._listener.listen()
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            if self._welcome(outer):
                self._relay(outer)
            else:
                outer.close()

    def _welcome(self, outer: socket.socket) -> bool:
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None:
            return True
        _, user, _ = _CREDENTIALS.unpack(outer.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
        if user not in self._users:
            log.warning("refused a connection of user %d; allowed: %s ([trainer] allowed_uids)", user, self._users)
        return user in self._users

    def _relay(self, outer: socket.socket) -> None:
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.connect(str(self._inside))
        except OSError as error:
            log.warning("the gRPC server does not take a connection: %s", error)
            outer.close()
            inner.close()
            return
        for source, target in ((outer, inner), (inner, outer)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy one direction until it ends, then end both."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
