"""The whole loop over time: streams of sites' data, what decides about retraining, and what that came to."""
