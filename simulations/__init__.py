"""The same job on one machine: local engine, Flower's own simulation runtime, the built-in demo."""
