"""`train.py` within a test's own process."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from lt_lightning.cli import naming

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def composed(*overrides):
    naming.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def run(tmp_path, *overrides):
    """What `python train.py` does, in this process."""
    sys.path.insert(0, str(ROOT))
    from train import main

    cfg = composed("logger=csv", *overrides, f"hydra.runtime.output_dir='{tmp_path}'")
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        del cfg["hydra"]
    main(cfg)
