"""``federation.toml``: what the operator of a federation decides, one frozen model, checked when it is read.

Invariant: what ``Settings.toml`` writes is what is read back, with a word on every key for whoever edits it.
"""

import json
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from fedretrain.job import Name
from fedretrain.tomlfile import Section

DEFAULT_PORT: Final = 8443


def split_address(text: str) -> tuple[str, int]:
    """Host (without brackets) and port of ``host:port`` or ``[v6]:port``; raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port with a port from 1 to 65535, got {text!r}")
    bare = host.removeprefix("[").removesuffix("]")
    if (
        not bare
        or bare.count(":") == 1
        or (":" in bare) != (host != bare)
        or any(c.isspace() or c == "/" for c in bare)
    ):
        raise ValueError(f"expected host:port, an IPv6 address in brackets, got {text!r}")
    return bare, int(port)


def _address(text: str) -> str:
    split_address(text)
    return text


Address = Annotated[str, AfterValidator(_address)]


class Limits(Section):
    """What the gateway lets through."""

    body_limit_bytes: int = Field(64 * 2**20, ge=2**20, description="largest request body")
    requests_per_second: float = Field(50, gt=0, description="steady rate of one site")
    burst: int = Field(200, ge=1, description="requests a site may send at once")
    connections: int = Field(1000, ge=1, description="open connections of all sites together")


class Settings(Section):
    """``federation.toml``."""

    name: Name = Field(description="the federation's name, as sites see it")
    address: Address = Field(description="host:port under which sites reach the gateway; goes into their kits")
    names: tuple[str, ...] = Field((), description="further host names and IP addresses in the server's certificate")
    listen: Address = Field(f"0.0.0.0:{DEFAULT_PORT}", description="host:port the gateway listens on")
    sites: tuple[Name, ...] = Field((), description="names that may be admitted; empty: any")
    limits: Limits = Limits()

    @property
    def host(self) -> str:
        """Where the gateway listens."""
        return split_address(self.listen)[0]

    @property
    def port(self) -> int:
        """The port the gateway listens on."""
        return split_address(self.listen)[1]

    @property
    def server_names(self) -> tuple[str, ...]:
        """Everything the server's certificate has to name, the host of ``address`` first."""
        return tuple(dict.fromkeys((split_address(self.address)[0], *self.names)))

    def toml(self) -> str:
        """The file's text."""
        limits = self.limits
        lines = [
            "# A federation of sites. `fedretrain server up` reads this file when it starts.",
            f"name = {json.dumps(self.name)}",
            f"address = {json.dumps(self.address)}  # where sites reach the server; goes into their kits",
            f"listen = {json.dumps(self.listen)}  # where the gateway listens",
            f"names = {json.dumps(self.names)}  # more names in its certificate; to apply: fedretrain server renew",
            f"sites = {json.dumps(self.sites)}  # names that may be admitted; empty: any",
            "",
            "[limits]  # of what the gateway lets through",
            f"body_limit_bytes = {limits.body_limit_bytes}  # largest request body",
            f"requests_per_second = {limits.requests_per_second}  # steady rate of one site",
            f"burst = {limits.burst}  # requests a site may send at once",
            f"connections = {limits.connections}  # open connections of all sites together",
        ]
        return "\n".join(lines) + "\n"
