"""The same job on one machine: local engine, Flower's own simulation runtime, the built-in demo.

Where to look, by question::

    how a simulation goes       cli, task, simulate, quiet
    the local engine            engine (the grid), together (groups of sites), pool, process, devices
    what a worker does          worker, group, ready, shared_store; frames and memory are what it shares with the engine
    Flower's runtime            flower, superlink, supervisor
    where data come from        demo, digits, partition; poison spoils what a site sends
    what is measured            benchmarks/
"""
