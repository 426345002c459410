"""From evidence, policy and cost to a plan that a person can read: when to retrain, which way, and why."""
