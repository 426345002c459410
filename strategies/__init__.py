"""How updates are made at a site and combined at the server: one algorithm per file, pure numerics."""
