"""The aggregation server.

Where to look, by question::

    how a run goes              run, plan, rounds, attendance, prepare, asking, exchange, intake, checkpoint, saving,
                                events, app
    what a reply has to be      admission, norms, messenger (seals), guarded (the way from SuperLink)
    how updates are combined    aggregate, spool, combining (where they are made)
    what passes                 gate, paired, measure, scores, holdouts
    what is released            registry, reader, staging, metadata, audit, keys, lineage, keras_file,
                                deliver, installed
    who belongs to it           federation, federation_file, provision, renewal, certificates, keyfile, sites
    what runs on the machine    up, reconcile, deliveries, desired, uplock, room; the processes superlink, executor,
                                serverapp and gateway/; flowerside/ is all that leans on Flower's internals
    what an operator types      cli, cli_operations, cli_provision, operations, watch, logs, systemd, *_text, options
"""
