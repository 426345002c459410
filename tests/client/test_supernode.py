"""What a site's operator reads when the SuperNode cannot take part."""

from pathlib import Path

import pytest

from client import runfiles
from client.home import Home
from client.supernode import Reporter, network_problem, refusal

ADDRESS = "fed.example.org:8443"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid for 'x'", "for another name"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] IP address mismatch, certificate is not valid", "for another address"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "has expired"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate is not yet valid", "set its clock"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in certificate chain", "another authority"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "does not speak TLS"),
        ("[Errno -2] Name or service not known", "the name fed.example.org is not known to DNS"),
        ("[Errno 111] Connection refused", "nothing listens at fed.example.org:8443"),
        ("timed out", "does not answer in time"),
        ("[Errno 101] Network is unreachable", "no way to fed.example.org"),
        ("", "no reason given"),
    ],
)
def test_an_error_of_the_network_is_told_with_its_cause(error: str, words: str) -> None:
    """In words, with the address."""
    assert words in network_problem(ADDRESS, error)


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (401, "", "is not admitted, or this machine's clock"),
        (403, "hospital-a was revoked on 2026-01-01", "hospital-a was revoked on 2026-01-01"),
        (400, "Failed to activate SuperNode.", "within 60 s of an unclean stop"),
        (413, "", "body_limit_bytes"),
        (429, "", "too many"),
        (503, "", "the server behind it does not answer; tried again"),
        (503, "north is not registered yet", "north is not registered yet; tried again"),
    ],
)
def test_a_refusal_is_told_with_what_to_do(status: int, text: str, words: str) -> None:
    """And with the server's own words where it has any."""
    assert words in refusal(ADDRESS, status, text)


def test_a_problem_stands_until_the_server_answers(tmp_path: Path) -> None:
    """As one line in a file, for ``up``."""
    home = Home.at(tmp_path)
    home.make()
    reporter = Reporter(home, ADDRESS)
    reporter.unreachable(OSError("[Errno 111] Connection refused"))
    assert runfiles.read_problem(home) == "nothing listens at fed.example.org:8443; tried again until it works"
    reporter.answered()
    assert runfiles.read_problem(home) == ""


def test_a_copied_folder_does_not_sign_off_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's number counts on the machine where it was given alone."""
    home = Home.at(tmp_path)
    home.make()
    assert runfiles.last_node(home) == 0
    runfiles.remember_node(home, 2**63 + 1)
    runfiles.clear(home)
    assert runfiles.last_node(home) == 2**63 + 1
    monkeypatch.setattr(runfiles, "_machine", lambda: "another")
    assert runfiles.last_node(home) == 0


def test_the_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """Whichever process starts first; mode 0600."""
    home = Home.at(tmp_path)
    home.make()
    first = runfiles.secret(home)
    assert runfiles.secret(home) == first
    assert len(first) == 64
    assert home.secret.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in home.run.iterdir()] == ["secret"]
