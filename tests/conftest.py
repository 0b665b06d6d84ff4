import logging
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


settings.register_profile("loaded", deadline=None)  # the machine may be busy
settings.load_profile("loaded")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums do not depend on how many cores the machine has, and small networks are faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
