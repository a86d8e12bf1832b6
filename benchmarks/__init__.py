"""Benchmarks of fusedrnn beside torch.nn; see README.md for the method."""
