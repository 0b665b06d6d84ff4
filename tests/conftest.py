import io
import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("killing", "matrix", "sharding", "tiny")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
torch.set_num_threads(1)  # at once, so that the runs of session fixtures are computed with it too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background, which would pass that on
    signal.signal(signal.SIGINT, signal.default_int_handler)


settings.register_profile("loaded", deadline=None)  # the machine may be busy
settings.load_profile("loaded")


def pytest_terminal_summary(terminalreporter):
    """Print the tables that tests recorded, whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for text in (text for key, text in report.user_properties if key == "table" and report.when == "call"):
            terminalreporter.section(report.nodeid.rpartition("::")[2], sep="-")
            terminalreporter.write_line(text)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums do not depend on how many cores the machine has, and small networks are faster."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals_as_before():
    """Lightning leaves Ctrl-C ignored after a KeyboardInterrupt, as its program is about to end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_process_group():
    """A fit with a strategy of several processes leaves its group and its variables to whatever comes next."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Small data sets in the layout of the hub's copies: MNIST's and CIFAR-10's columns and shapes."""
    import datasets

    root = tmp_path_factory.mktemp("images")
    for name, column, shape in (("mnist", "image", (28, 28)), ("cifar10", "img", (32, 32, 3))):
        for split, count in (("train", 400), ("test", 40)):
            draws = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
            encoded = [{"bytes": png(pixels), "path": None} for pixels in draws]
            features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
            rows = {column: encoded, "label": [n % 10 for n in range(count)]}
            (root / name).mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features).to_parquet(root / name / f"{split}.parquet")
    return root


@pytest.fixture(scope="session")
def plays(tmp_path_factory):
    """A small text that a model can learn something from."""
    lines = [f"{name}:\nWhat says the {noun}?\n\n" for name in ("ROMEO", "PUCK", "LEAR") for noun in ("king", "moon")]
    draws = np.random.default_rng(0).integers(0, len(lines), 300)
    file = tmp_path_factory.mktemp("plays") / "input.txt"
    file.write_text("".join(lines[n] for n in draws))
    return file


@pytest.fixture(scope="session")
def real_images():
    """The folder with the real MNIST and CIFAR-10."""
    if "LT_TEST_DATA" not in os.environ:
        pytest.skip("LT_TEST_DATA does not name a folder with mnist/ and cifar10/")
    return Path(os.environ["LT_TEST_DATA"])


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
