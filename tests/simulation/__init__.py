"""The chain in one process with a virtual clock: the product's own code, a seed, and whatever can go wrong."""
