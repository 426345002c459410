"""A release with what this site keeps for itself in its place: the model that personal strategies are run for.

FedPer and FedBN: the site's own values of the personal layers. Ditto: its own model in place of the global one. They
are those that the release's run left here; reading them keeps them from being removed with old runs.
"""

from dataclasses import replace

from fedretrain.errors import ConfigurationError
from fedretrain.release import Release
from strategies.ditto import PERSONAL

from .home import Home
from .keeping import AFTER_ALL, last_layers
from .store import SiteStore


def own(home: Home, release: Release) -> Release:
    """The release with this site's own values; its id, contract and evidence are those of the one that was verified.

    Raises:
        ConfigurationError: The site has joined no federation, or the run left nothing here.
    """
    contract, run = release.contract, release.lineage["run"]
    positions = contract.personal or contract.changing
    memory = SiteStore(home.store).memory(run, home.load_kit().site)
    values = last_layers(memory, contract) or memory.read(PERSONAL, AFTER_ALL, contract.changing_specs)
    if values is None:
        raise ConfigurationError(
            f"{home.store}: expected what run {run} left of this site's own, got nothing: its strategy keeps none "
            "(fedper, fedbn and ditto do), the site took no part, or a month has gone by"
        )
    weights = list(release.weights)
    for position, array in zip(positions, values, strict=True):
        weights[position] = array
    return replace(release, weights=weights)
