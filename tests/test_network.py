"""`python train.py` talks to no other machine, and asks for no name, unless online logging was asked for."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from app import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]

TRIALS = ["prune.rounds=1", "prune.controls=[]", "trainer.max_epochs=1", "hydra.run.dir=run"]
MNIST = ["data=mnist", "data.path=mnist", "+trainer.limit_train_batches=2", "data.val_size=40", "data.batch_size=20"]
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["logger=csv"],
        ["logger=wandb", "logger.mode=offline", "replicates=2"],
        ["logger=tensorboard"],
        ["logger=mlflow"],
        ["logger=csv", *MNIST],
        ["logger=csv", "trainer=ddp_cpu2"],
    ],
    ids=lambda overrides: ",".join(overrides[:2]) or "default",
)
def test_the_command_talks_to_no_other_machine(tmp_path, images, overrides, record_property):
    (tmp_path / "mnist").symlink_to(images / "mnist")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-s", "200", "-e", "trace=network", "-o", str(trace)]
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_", "HF_"))}
    done = subprocess.run(
        [*strace, sys.executable, ROOT / "train.py", *TRIALS, *overrides],
        cwd=tmp_path,
        env=mine | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    told = trace.read_text(errors="replace")
    found = {address for line in told.splitlines() for address in ADDRESS.findall(line)}
    others = {address for address in found if not LOOPBACK.match(address[1]) or address[0] == "53"}
    assert others - {("0", "0.0.0.0"), ("0", "::")} == set()
    calls = len(told.splitlines())
    record_property(
        "table", f"{' '.join(overrides) or 'python train.py'}: {calls} network calls, none leaves the machine"
    )
