"""A Flower app as Flower's Keras quickstart has it, with McMahan et al.'s models: what simulations are set beside.

Its folder is copied beside a ``pyproject.toml`` and run by ``flwr run``. It reads nothing of this project, so that what
it costs is Flower's cost.
"""
