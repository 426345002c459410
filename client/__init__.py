"""A partner site: loads private data, checks it against the contract, trains, and answers with counts and arrays."""
