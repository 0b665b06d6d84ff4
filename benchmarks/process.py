"""A whole process, `train.py` against a script that does the same without Lightning, from command to exit.

python -m benchmarks process        needs LT_TEST_DATA: a folder with mnist/train.parquet and mnist/test.parquet
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, EPOCHS, BATCH = 3, 2, 128


def rows(quick):
    """The row of the table: what, seconds to reach, seconds more, seconds of both."""
    folder = os.environ.get("LT_TEST_DATA")
    if folder is None:
        print("       -        -   a whole process: set LT_TEST_DATA to a folder with mnist/")
        return
    mnist = Path(folder, "mnist")
    spans = {"ours": [], "bare": []}
    for _ in range(1 if quick else 5):
        with tempfile.TemporaryDirectory() as directory:
            ours = [sys.executable, "train.py", "experiment=lth_lenet_mnist", f"data.path={mnist}", f"name={directory}"]
            ours += [f"prune.rounds={ROUNDS - 1}", "prune.controls=[]", f"trainer.max_epochs={EPOCHS}"]
            ours += ["trainer.max_steps=-1", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1"]
            ours += [f"data.batch_size={BATCH}", f"hydra.run.dir={directory}/run", "logger.mode=offline"]
            bare = [sys.executable, "-m", "benchmarks.process", str(mnist), f"{directory}/bare"]
            for name, command in {"ours": ours, "bare": bare}.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                spans[name].append(time.perf_counter() - start)
    ours, bare = (statistics.median(each) for each in spans.values())
    what = f"{ROUNDS} rounds of {EPOCHS} epochs of LeNet on MNIST, a whole process: seconds more than a bare script"
    yield what, 7.0, ours - bare, ours, bare


def bare(folder, target):
    """What a researcher would write: data in memory, Adam, layerwise pruning, rewinding, a checkpoint a round."""
    import io

    import numpy
    import pyarrow.parquet
    import torch
    from PIL import Image
    from torch.nn.functional import cross_entropy

    def load(split):
        table = pyarrow.parquet.read_table(Path(folder, f"{split}.parquet"))
        pngs = [cell["bytes"] for cell in table["image"].to_pylist()]
        pixels = numpy.stack([numpy.asarray(Image.open(io.BytesIO(png))) for png in pngs])
        images = (torch.from_numpy(pixels).float() / 255 - 0.1307) / 0.3081
        return images.flatten(1), torch.tensor(table["label"].to_pylist())

    def accuracy(images, labels):
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())

    torch.manual_seed(0)
    torch.set_num_threads(1)
    Path(target).mkdir(parents=True)
    images, labels = load("train")
    held, test = (images[:5000], labels[:5000]), load("test")
    images, labels = images[5000:], labels[5000:]
    layers = [torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: each for name, each in model.named_parameters() if each.dim() > 1}
    masks = {name: torch.ones_like(each) for name, each in weights.items()}
    for round in range(ROUNDS):
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), 1.2e-3, fused=True)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
                with torch.no_grad():
                    for name, weight in weights.items():
                        weight.mul_(masks[name])
            accuracy(*held)
        print(round, accuracy(*test))
        torch.save({"model": model.state_dict(), "masks": masks}, Path(target, f"{round}.pt"))
        for name, weight in weights.items():
            fraction = 0.1 if name == "4.weight" else 0.2
            kept = weight.detach().abs()[masks[name] > 0]
            masks[name] *= weight.detach().abs() > kept.kthvalue(max(1, int(fraction * len(kept)))).values


if __name__ == "__main__":
    bare(sys.argv[1], sys.argv[2])
