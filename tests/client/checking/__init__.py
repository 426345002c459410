"""What a site counts for a check, and what of it leaves."""
