"""Drifts that are built in, of real digits: what ``fedretrain scenario`` writes and ``fedretrain compare`` runs on."""
