"""Hydra configs; `hydra.searchpath=[pkg://lt_lightning.conf]` makes them available to any Hydra app."""
