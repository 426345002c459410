"""A check of data and model at the sites without training: what is asked, what is taken, and the document of it."""
