"""A release with what this site keeps for itself in its place: the model that personal strategies are run for.

FedPer and FedBN: the site's own values of the personal layers. Ditto: its own model in place of the global one. They
are those that the release's run left here; reading them keeps them from being removed with old runs.
"""

from dataclasses import replace

from fedretrain.errors import ConfigurationError
from fedretrain.release import Release
from strategies.ditto import PERSONAL

from .home import Home
from .keeping import LAYERS
from .store import SiteStore

_AFTER_ALL = 1 << 62  # no round has this number


def own(home: Home, release: Release) -> Release:
    """The release with this site's own values; its id, contract and evidence are those of the one that was verified.

    Raises:
        ConfigurationError: The site has joined no federation, or the run left nothing here.
    """
    contract, run = release.contract, release.lineage["run"]
    positions, name = (contract.personal, LAYERS) if contract.personal else (contract.changing, PERSONAL)
    memory = SiteStore(home.store).memory(run, home.load_kit().site)
    values = memory.read(name, _AFTER_ALL, [contract.variables[position] for position in positions])
    if values is None:
        raise ConfigurationError(
            f"{home.store}: expected what run {run} left of this site's own, got nothing: its strategy keeps none "
            "(fedper, fedbn and ditto do), the site took no part, or a month has gone by"
        )
    weights = list(release.weights)
    for position, array in zip(positions, values, strict=True):
        weights[position] = array
    return replace(release, weights=weights)
