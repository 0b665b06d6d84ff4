"""The command line: what `train.py` is made of, and what Hydra applications of others use (`jobs`, `sweeps`)."""
