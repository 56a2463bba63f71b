"""The engines of a bundle: which ones this machine makes, of which files and sizes; compiled, kept and ranked."""
