"""What `train.py` and `python -m lt_lightning` are made of."""
