"""A site's data as the contract names them, one format per module."""
