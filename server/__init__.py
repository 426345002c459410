"""The aggregation server: rounds, admission, checkpoints, gate, registry."""
