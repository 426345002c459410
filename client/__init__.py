"""A partner site: trains on private data under its own policy, and answers with counts, numbers and arrays.

Where to look, by question::

    what passes and what leaves   gatekeeper, policy, approvals, nonces, layers, leaving, record, refusal, refusals
    how the data are read         sitefile, data/
    how it trains                 site, trainer, step, graph, compiling, fitting, initial, resident, pace, settings,
                                  sampling, incoming, store
    how releases arrive           installer, releases, shelf
    what runs on the machine      up, systemd, runfiles; the processes supernode, executor, trainer_main, between them
                                  service, door and wire; flowerside/ is all that leans on Flower's internals
    what an operator types        cli, identity, doctor/, site_text, releases_text
    where it all lies             home

``app`` is the ClientApp for Flower's simulation runtime, where none of the processes is needed.
"""
