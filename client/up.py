"""``fedretrain client up``: keeps a site's SuperNode, executor and trainer running until it is told to stop."""

from .home import Home


def main(home: Home) -> int:
    """Run until Ctrl-C or SIGTERM.

    Returns:
        The exit code: 130 after Ctrl-C, 0 after SIGTERM.

    Raises:
        ConfigurationError: The site has not joined, or its site.toml is wrong.
        MachineError: ``client up`` runs already with this home, or the disk does not take what must be written.
    """
    raise NotImplementedError(home)
