"""What a server and a site must agree on: the job, the contract, the messages, the release and how it is verified."""

__version__ = "0.1.0"
