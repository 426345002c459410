"""The SuperLink of a simulation, as a process: ``python -m simulations.launcher LEASE ARGUMENT...``.

It is Flower's own but for LEASE: the seconds that the process of a run may take to start. Flower starts another one
when they are over, and refuses what the first one asks for.
"""

import sys

from server.flowerside import run_superlink

if __name__ == "__main__":
    run_superlink(sys.argv[2:], lease_s=float(sys.argv[1]))
