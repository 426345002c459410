"""``site.toml``: where a site's data lie, what its policy allows, and how its trainer runs.

``load_site`` is the only way in; every mistake becomes one line that names the key. The tables of ``[data]`` differ by
``format`` and stand with their readers in ``client.data``; the policy is ``client.policy``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError
from fedretrain.job import Reference
from fedretrain.tomlfile import Section, check_toml, read_toml

from .data.section import FORMATS, DataSection
from .policy import Policy

Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class TrainerSection(Section):
    """The process that touches data."""

    backend: Reference = Field("client.trainer:Trainer", description="module:class that trains")
    threads: int = Field(1, ge=1, le=1024, description="threads of one operation; the same at every site of a job")
    memory_mb: int | None = Field(None, ge=64, description="most memory the trainer may use, in MiB")
    nice: int = Field(5, ge=0, le=19, description="19 gives way to every other process")
    allowed_uids: tuple[int, ...] = Field((), description="users whose executor may connect, beside the trainer's own")
    allow_modules: tuple[Module, ...] = Field((), description="installed modules whose layer classes may be built")


class SiteFile(Section):
    """A loaded ``site.toml``."""

    data: DataSection
    policy: Policy = Policy()
    trainer: TrainerSection = TrainerSection()


def load_site(path: Path) -> SiteFile:
    """Read and check a ``site.toml``.

    Raises:
        ConfigurationError: It is missing, is not TOML, or a key is unknown, missing or of the wrong type.
    """
    raw = read_toml(path, "site.toml; 'fedretrain client join' writes one")
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("format") not in FORMATS:
        known = ", ".join(f'"{name}"' for name in FORMATS)
        raise ConfigurationError(f"{path}: data.format: expected one of {known} in the table [data]")
    kind: type[SiteFile] = create_model("SiteFile", __base__=SiteFile, data=(FORMATS[data["format"]], ...))
    return check_toml(raw, kind, path)


def reader(site: SiteFile, folder: Path) -> Callable[[Contract], Dataset]:
    """What reads the site's data as a contract names them; it raises DataMismatch only.

    Args:
        site: A loaded ``site.toml``.
        folder: Where it lies; relative paths in it are from there.
    """
    raise NotImplementedError


def template(name: str) -> str:
    """A ``site.toml`` to fill in, with every key explained; ``name`` is the site's."""
    raise NotImplementedError
