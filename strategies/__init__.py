"""How updates are made at a site and combined at the server: one algorithm per file, pure numerics."""

from .registry import local_objective, make

__all__ = ["local_objective", "make"]
