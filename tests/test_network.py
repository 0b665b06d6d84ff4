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

TRIALS = ["prune.rounds=1", "prune.controls=[]", "trainer.max_epochs=1", "hydra.run.dir='run/seed=0'"]
MNIST = ["data=mnist", "data.path=mnist", "+trainer.limit_train_batches=2", "data.val_size=40", "data.batch_size=20"]
TO = r"(?:connect|sendto|sendmsg|sendmmsg)\(.*?sin6?_port=htons\((\d+)\)"
ADDRESS = re.compile(TO + r'.*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
NAME = re.compile(r'sendto\(\d+, ".{0,20}\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0(\\.*?)\\0\\0')
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
    assert (tmp_path / "run" / "seed=0" / "report.html").exists()
    lines = trace.read_text(errors="replace").splitlines()
    found = {address for line in lines for address in ADDRESS.findall(line)}
    asked = {name for line in lines for name in NAME.findall(line)}
    if "trainer=ddp_cpu2" in overrides:  # torch asks for the name of the address at which its processes meet
        assert asked <= {r"\0011\0010\0010\003127\7in-addr\4arpa"}
        found = {address for address in found if address[0] != "53"}
    assert {address for address in found if address[0] == "53" or not LOOPBACK.match(address[1])} == set()
    what = " ".join(overrides) or "python train.py"
    record_property("table", f"{what}: {len(lines)} network calls, none leaves the machine")
