"""The SuperLink as we start it: who can reach it, what it keeps, and that it comes back as it was."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedretrain.errors import MachineError
from server.superlink import choose_port, superlink_address

from .fleet import Site, make_bundle, make_federation, npy, raw_array, raw_records, running


def test_the_last_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    """A ServerApp that is running finds the SuperLink again; a port somebody else took is given up."""
    path = tmp_path / "port"
    first = choose_port(path)
    assert choose_port(path) == first == int(path.read_text())
    with socket.create_server(("127.0.0.1", first)):
        second = choose_port(path)
    assert second != first
    assert int(path.read_text()) == second
    path.write_text("no port")
    assert choose_port(path) == int(path.read_text())


def test_a_superlink_that_never_ran_is_said_to_be_missing(tmp_path: Path) -> None:
    """With the command that starts it."""
    with pytest.raises(MachineError, match="fedretrain server up"):
        superlink_address(make_federation(tmp_path / "federation"))


@pytest.mark.slow
def test_fault_37_a_killed_superlink_comes_back_with_everything(tmp_path: Path) -> None:
    """After SIGKILL and ten seconds: same port, same nodes, the run and a call under way go on, a reply is taken."""
    federation = make_federation(tmp_path / "federation")
    with running(federation) as link:
        control = link.control()
        site = Site(link, "a").join(control)
        grid = link.grid(make_bundle(tmp_path / "bundle", "pass"))
        content = RecordDict({"body": ConfigRecord({"json": "{}"})})
        (message_id,) = grid.push_messages([Message(content, site.node_id, "train", ttl=120)])
        asked, address = site.asked(), link.address
        link.kill()
        with ThreadPoolExecutor(1) as meanwhile:
            keys = meanwhile.submit(grid.node_keys)
            time.sleep(10)
            assert not keys.done()
            link.start()
            assert keys.result(timeout=10) == {site.node_id: site.pem}
        assert link.address == address
        assert control.run_status(grid.run.run_id) == "running"
        site.answer(asked, raw_records({"0": raw_array(npy(np.zeros(3, "float32")))}))
        time.sleep(0.5)
        (reply,) = grid.pull_messages([message_id])
        assert reply.has_content()


@pytest.mark.slow
def test_it_listens_on_loopback_with_tls_and_its_files_are_the_owners(tmp_path: Path) -> None:
    """Every socket that listens is on 127.0.0.1; database and secret are 0600; told to end, it ends by itself."""
    federation = make_federation(tmp_path / "federation")
    with running(federation) as link:
        assert link.child.pid
        assert {ip for ip, _ in _listening(link.child.pid)} == {"0100007F"}
        for path in (federation.secret, federation.database):
            assert path.stat().st_mode & 0o077 == 0
        with socket.create_connection(("127.0.0.1", int(federation.superlink_port.read_text())), timeout=5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(100)
        assert link.control().answers()  # and this connection stays open
        assert federation.secret.read_bytes() not in Path(f"/proc/{link.child.pid}/cmdline").read_bytes()
        link.child.stop(30)
        assert link.child.returncode in {0, -signal.SIGTERM}


def _listening(pid: int) -> set[tuple[str, str]]:
    """Address (hexadecimal, as in /proc/net/tcp) and port of every socket the process listens on."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(handle.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(tuple(fields[1].split(":")))
    return found
