"""Who runs the same federated averaging: this project, what it is measured against, and what nobody can do without."""
