import io
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.data import Images, Splits, TensorLoader, digits, flip_crop, hub

hub_module = sys.modules["lt_lightning.data.hub"]  # the package shows the function of that name
CONF = Path(__file__).parent.parent / "conf" / "data"
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "devices": 1,
}


def make_loader(count=23, **changes) -> TensorLoader:
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"batch_size": 4, "seed": 0, "shuffle": True} | changes
    return TensorLoader(images, torch.arange(count), **options)


def labels_of(loader, epoch=0) -> list[list[int]]:
    loader.set_epoch(epoch)
    return [labels.tolist() for _, labels in loader]


def flat(batches) -> list[int]:
    return [label for batch in batches for label in batch]


# ---- order


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_exactly_once_per_epoch(count, batch_size, seed, epoch):
    loader = make_loader(count, batch_size=batch_size, seed=seed)
    batches = labels_of(loader, epoch)
    assert sorted(flat(batches)) == list(range(count))
    assert len(batches) == len(loader)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_order_is_a_function_of_seed_and_epoch():
    assert labels_of(make_loader(seed=3), 2) == labels_of(make_loader(seed=3), 2)
    orders = [tuple(flat(labels_of(make_loader(seed=s), e))) for s in range(4) for e in range(4)]
    assert len(set(orders)) == 16


def test_order_does_not_depend_on_augmentation():
    assert labels_of(make_loader(augment=flip_crop), 1) == labels_of(make_loader(), 1)


def test_order_is_pinned_so_that_runs_can_be_repeated_by_later_versions():
    assert flat(labels_of(make_loader(8, seed=0), 0)) == [0, 2, 7, 6, 5, 1, 4, 3]


def test_drop_last_leaves_out_the_smaller_batch():
    assert [len(batch) for batch in labels_of(make_loader(23, drop_last=True))] == [4] * 5


def test_without_shuffle_batches_are_in_order_and_labels_share_memory():
    loader = make_loader(shuffle=False)
    assert flat(labels_of(loader)) == flat(labels_of(loader, 5)) == list(range(23))
    assert next(iter(loader))[1].data_ptr() == loader.labels.data_ptr()


def test_global_random_state_is_neither_used_nor_changed():
    loader = make_loader(augment=flip_crop)
    before = torch.get_rng_state()
    first = [images for images, _ in loader]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, loader, strict=True))


def test_pixels_are_normalised():
    loader = make_loader(shuffle=False, normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    images, _ = next(iter(loader))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = (loader.images[:4] / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected)


# ---- ranks


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 7),
    shuffle=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_ranks_divide_the_batches_of_one_process(count, batch_size, world_size, shuffle):
    options = {"batch_size": batch_size * world_size, "shuffle": shuffle}
    single = labels_of(make_loader(count, **options), 1)
    ranks = [labels_of(make_loader(count, **options, rank=r, world_size=world_size), 1) for r in range(world_size)]
    for step, expected in enumerate(single):
        parts = [batches[step] for batches in ranks]
        assert len({len(part) for part in parts}) == 1
        surplus = Counter(flat(parts)) - Counter(expected)
        assert not Counter(expected) - Counter(flat(parts))
        assert surplus.total() < world_size
        assert step == len(single) - 1 or not surplus
    assert all(len(batches) == len(single) for batches in ranks)


def test_ranks_fill_up_with_the_first_samples_of_the_epoch_and_their_augmentation():
    whole = torch.cat([images for images, _ in make_loader(9, batch_size=8, augment=flip_crop)])
    ranks = [make_loader(9, batch_size=8, world_size=4, rank=rank, augment=flip_crop) for rank in range(4)]
    last = torch.cat([list(loader)[-1][0] for loader in ranks])
    assert torch.equal(last, whole[[8, 0, 1, 2]])


# ---- position


@pytest.mark.parametrize("augment", [None, flip_crop])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resume_equals_the_rest_of_the_epoch_from_every_batch(augment, shuffle):
    loader = make_loader(shuffle=shuffle, augment=augment)
    loader.set_epoch(3)
    whole, states = [], [loader.state_dict()]
    for batch in loader:
        whole.append(batch)
        states.append(loader.state_dict())
    for done, state in enumerate(states):
        resumed = make_loader(shuffle=shuffle, augment=augment)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state == {"epoch": 3, "batch": done}
        rest = list(resumed)
        assert len(rest) == len(whole) - done
        assert all(
            torch.equal(a, b) for x, y in zip(rest, whole[done:], strict=True) for a, b in zip(x, y, strict=True)
        )


def test_resume_assembles_no_batch_that_was_seen(monkeypatch):
    loader, assembled = make_loader(), []
    original = TensorLoader._assemble
    monkeypatch.setattr(TensorLoader, "_assemble", lambda *args: assembled.append(1) or original(*args))
    loader.load_state_dict({"epoch": 1, "batch": 4})
    next(iter(loader))
    assert len(assembled) == 1


def test_position_survives_set_epoch_of_the_same_epoch_and_unused_iterators():
    loader = make_loader()
    iter(loader)
    loader.load_state_dict({"epoch": 2, "batch": 3})
    iterator = iter(loader)
    iter(loader)
    loader.set_epoch(2)
    assert [labels.tolist() for _, labels in iterator] == labels_of(make_loader(), 2)[3:]


def test_position_applies_once():
    loader = make_loader()
    loader.load_state_dict({"epoch": 0, "batch": 3})
    assert len(list(loader)) == 3
    assert labels_of(loader, 0) == labels_of(make_loader(), 0)
    assert labels_of(loader, 1) == labels_of(make_loader(), 1)


def test_another_epoch_voids_the_position():
    loader = make_loader()
    loader.load_state_dict({"epoch": 0, "batch": 6})
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    assert labels_of(loader, 1) == labels_of(make_loader(), 1)


def test_iterator_takes_the_epoch_that_is_set_before_its_first_batch():
    loader = make_loader()
    iterator = iter(loader)
    loader.set_epoch(4)
    assert [labels.tolist() for _, labels in iterator] == labels_of(make_loader(), 4)


# ---- augmentation


def slow_flip_crop(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    out = []
    for image, draw in zip(images, draws, strict=True):
        top, left = (int(d * (2 * padding + 1)) for d in draw[1:3])
        crop = F.pad(image, (padding,) * 4)[:, top : top + image.shape[1], left : left + image.shape[2]]
        out.append(crop.flip(-1) if draw[0] < 0.5 else crop)
    return torch.stack(out)


@given(seed=st.integers(0, 999), channels=st.sampled_from([1, 3]), padding=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_flip_crop_equals_the_reference(seed, channels, padding):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (7, channels, 6, 9), dtype=torch.uint8, generator=draw)
    draws = torch.rand(7, 8, generator=draw)
    result = flip_crop(images, draws, padding=padding)
    assert result.dtype == torch.uint8
    assert torch.equal(result, slow_flip_crop(images, draws, padding))


def test_flip_crop_reaches_every_place_and_survives_draws_next_to_one():
    image, draws = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2), torch.rand(2000, 8)
    results = flip_crop(image.expand(2000, -1, -1, -1), draws, padding=1).flatten(1)
    assert len(results.unique(dim=0)) == 18
    below_one = torch.full((1, 8), 1 - 2**-24)
    for padding in range(200):
        flip_crop(image, below_one, padding=padding)


def test_augmentation_belongs_to_the_place_in_the_epoch_not_to_the_batch():
    small, large = (make_loader(batch_size=size, augment=flip_crop) for size in (1, 23))
    assert torch.equal(torch.cat([images for images, _ in small]), next(iter(large))[0])
    loader = make_loader(augment=flip_crop, shuffle=False)
    first = next(iter(loader))[0]
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first)


# ---- Lightning


class Recorder(L.LightningModule):
    """Notes the samples of each step; its labels are sample numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 6 * 5, 2)
        self.seen, self.validated, self.tested = [], [], []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((self.current_epoch, batch_idx, labels.tolist(), images.sum().item()))
        return self.layer(images.flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[1].tolist())

    def test_step(self, batch, batch_idx):
        self.tested.append(batch[1].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbered(count=30) -> Splits:
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Splits(images, torch.arange(count), images[:5], torch.arange(5))


def make_images(source=numbered, **changes) -> Images:
    options = {"shape": [3, 6, 5], "num_classes": 30, "batch_size": 4, "val_size": 8, "seed": 0}
    return Images(source, **options | {"mean": [0.5], "std": [0.5], "augment": flip_crop} | changes)


@pytest.fixture
def trained(tmp_path):
    """A fit of 3 epochs of 6 steps with a checkpoint after every step."""

    def fit(**options):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
        module = Recorder()
        L.Trainer(**QUIET | options, max_epochs=3, callbacks=[keep]).fit(module, make_images())
        return module.seen, tmp_path

    return fit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 2},
        {"limit_train_batches": 4},
        {"num_sanity_val_steps": 0, "limit_val_batches": 0},
    ],
    ids=str,
)
def test_a_resumed_fit_sees_exactly_the_remaining_batches(trained, options):
    seen, folder = trained(**options)
    steps = len(seen)
    assert len({labels[0] for _, batch, (*labels,), _ in seen if batch == 0}) > 1
    for step in range(1, steps):
        module = Recorder()
        trainer = L.Trainer(**QUIET | options, max_epochs=3, enable_checkpointing=False)
        trainer.fit(module, make_images(), ckpt_path=folder / f"step={step}.ckpt")
        assert module.seen == seen[step:], f"from step {step} of {steps}"


@pytest.mark.parametrize("on_epoch_end", [True, False], ids=["train end", "validation end"])
def test_a_fit_resumed_from_an_epoch_end_goes_on_with_the_next_epoch(tmp_path, on_epoch_end):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=on_epoch_end)
    whole = Recorder()
    L.Trainer(**QUIET, max_epochs=3, callbacks=[keep]).fit(whole, make_images())
    for epoch in range(2):
        module = Recorder()
        trainer = L.Trainer(**QUIET, max_epochs=3, enable_checkpointing=False)
        trainer.fit(module, make_images(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert module.seen == whole.seen[6 * (epoch + 1) :]


def test_epochs_of_a_fit_are_the_epochs_of_the_loader():
    data, module = make_images(), Recorder()
    L.Trainer(**QUIET, max_epochs=3, enable_checkpointing=False).fit(module, data)
    loader = data.train_dataloader()
    expected = flat([labels_of(loader, epoch) for epoch in range(3)])
    assert [labels for _, _, labels, _ in module.seen] == expected
    held_out = sorted(set(range(30)) - set(flat(expected)))
    assert module.validated[-1] == held_out
    assert len(held_out) == 8


def test_overfit_batches_repeats_the_same_batches_without_a_warning(recwarn):
    module = Recorder()
    L.Trainer(**QUIET, max_epochs=2, overfit_batches=2, enable_checkpointing=False).fit(module, make_images())
    labels = [labels for _, _, labels, _ in module.seen]
    assert len(labels) == 4
    assert labels[:2] == labels[2:]
    assert not [warning for warning in recwarn if "shuffl" in str(warning.message)]


def test_one_module_serves_several_trainers_and_reads_once():
    reads = []
    data = make_images(lambda: reads.append(1) or numbered())
    for _ in range(2):
        trainer, module = L.Trainer(**QUIET, max_epochs=1, enable_checkpointing=False), Recorder()
        trainer.fit(module, data)
        trainer.test(module, data, verbose=False)
        place = data.train_dataloader().images.data_ptr()
    assert len(reads) == 1
    assert module.tested == [[0, 1, 2, 3, 4]]
    data.setup("fit")
    assert data.train_dataloader().images.data_ptr() == place
    assert data.train_dataloader() is not data.train_dataloader()


def test_without_validation_images_there_is_no_validation():
    module, data = Recorder(), make_images(val_size=0)
    L.Trainer(**QUIET, max_epochs=1, enable_checkpointing=False).fit(module, data)
    assert data.val_dataloader() == []
    assert module.validated == []
    assert len(flat(labels for _, _, labels, _ in module.seen)) == 30


def fit_on_rank(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    module = Recorder()
    trainer = L.Trainer(**QUIET | {"devices": 2}, strategy="ddp", max_epochs=2, enable_checkpointing=False)
    trainer.fit(module, make_images())
    torch.save((module.seen, module.validated), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(fit_on_rank, (tmp_path, port), nprocs=2)
    single = Recorder()
    L.Trainer(**QUIET, max_epochs=2, enable_checkpointing=False).fit(single, make_images())
    (seen, validated), (others, others_validated) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    joined = [a[2] + b[2] for a, b in zip(seen, others, strict=True)]
    assert joined == [labels for _, _, labels, _ in single.seen]
    assert validated[-1] + others_validated[-1] == single.validated[-1]


def test_seeds_share_the_validation_images():
    def held_out(**seeds):
        data = make_images(**seeds)
        data.setup()
        return flat(labels_of(data.val_dataloader()))

    assert held_out(seed=0) == held_out(seed=1) != held_out(split_seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data.batch_size=0, expected at least 1: set data.batch_size=1"),
        ({"eval_batch_size": 0}, r"data.eval_batch_size=0, expected at least 1"),
        ({"val_size": -1}, r"data.val_size=-1, expected at least 0: set data.val_size=0"),
        ({"shape": [6, 5]}, r"data.shape=\[6, 5\], expected \[channels, height, width\]"),
        ({"mean": [1, 2]}, r"data.mean=\[1, 2\] for 3 channels, expected 3 numbers or one"),
        ({"std": [0]}, r"data.std=\[0\], expected numbers above 0"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        make_images(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": [1, 28, 28]},
            r"shape \[3, 6, 5\], expected data.shape=\[1, 28, 28\]: set data.shape=\[3, 6, 5\]",
        ),
        ({"num_classes": 10}, r"labels run from 0 to 29, expected 0 to 9: set data.num_classes=30"),
        (
            {"val_size": 30},
            r"data.val_size=30 leaves nothing .* expected 0 <= data.val_size < 30 training images",
        ),
        ({"source": lambda: Splits(*[t.float() for t in numbered()])}, r"float32, expected torch.uint8"),
        (
            {"source": lambda: numbered()._replace(test_labels=torch.arange(4))},
            r"one per image and at least one",
        ),
    ],
    ids=["shape", "classes", "validation", "float", "labels"],
)
def test_data_unlike_the_declared_are_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        make_images(**changes).prepare_data()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_loader(batch_size=0), "batch_size=0, expected at least 1"),
        (lambda: make_loader(rank=2, world_size=2), "expected 0 <= rank < world_size"),
        (
            lambda: make_loader(batch_size=10, world_size=3),
            "data.batch_size=10 does not divide by 3 processes, expected a multiple, since it counts the samples of "
            "all of them: set data.batch_size=9 or 12, or another trainer.devices",
        ),
        (lambda: make_loader(batch_size=2, world_size=3), "set data.batch_size=3, or another trainer.devices"),
        (lambda: make_loader(0), "at least one"),
        (
            lambda: make_loader().load_state_dict({"epoch": 0, "batch": 7}),
            "stands at batch 7, expected 0 to 6",
        ),
    ],
)
def test_impossible_loaders_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loader_before_setup_is_refused():
    with pytest.raises(RuntimeError, match=r"no data yet: call setup\('fit'\) first"):
        make_images().train_dataloader()


# ---- digits


def test_digits_are_the_published_ones():
    splits = digits()
    labels = torch.cat([splits.train_labels, splits.test_labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert int(splits.train_images.sum()) + int(splits.test_images.sum()) == 561718
    assert splits.train_images.max() == 16
    assert splits.test_labels.bincount().min() >= 33


def test_digits_refuse_an_impossible_test():
    with pytest.raises(ValueError, match="test_size=1797, expected 0 < test_size < 1797"):
        digits(test_size=1797)


# ---- hub


def png(pixels: np.ndarray) -> dict:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write_folder(folder: Path, images: np.ndarray, labels=None, columns=("image", "label")) -> Path:
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", images), ("test", images[:2])):
        numbers = list(range(len(part))) if labels is None else labels[: len(part)]
        table = Dataset.from_dict({columns[0]: [png(image) for image in part], columns[1]: numbers})
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def pixels(count=6, shape=(5, 4, 3), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "lt_lightning"


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often images are decoded."""
    calls = []
    original = hub_module.decode
    monkeypatch.setattr(hub_module, "decode", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)], ids=["colour", "grey"])
def test_folder_becomes_tensors(tmp_path, shape):
    images = pixels(shape=shape)
    splits = hub(str(write_folder(tmp_path / "with [brackets]", images)), "image", "label")
    expected = torch.from_numpy(images.reshape(6, 5, 4, -1)).permute(0, 3, 1, 2)
    assert torch.equal(splits.train_images, expected)
    assert splits.train_images.is_contiguous()
    assert torch.equal(splits.test_images, expected[:2])
    assert splits.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert splits.train_labels.dtype == torch.int64


def test_folder_is_decoded_once_and_only_read(tmp_path, decodings):
    folder = write_folder(tmp_path / "data", pixels())
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    first, second = (hub(str(folder), "image", "label") for _ in range(2))
    assert len(decodings) == 1
    assert sorted(folder.iterdir()) == before
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_changed_source_is_decoded_again(tmp_path, decodings):
    for seed in range(2):
        images = pixels(seed=seed)
        splits = hub(str(write_folder(tmp_path / "data", images)), "image", "label")
        assert torch.equal(splits.train_images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert len(decodings) == 2


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = 200  # among the pixels of the first array
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda _: b""], ids=["truncated", "flipped", "empty"])
def test_damaged_cache_is_made_again(tmp_path, own_cache, decodings, damage):
    folder = str(write_folder(tmp_path / "data", pixels()))
    first = hub(folder, "image", "label")
    (file,) = own_cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again, cached = hub(folder, "image", "label"), hub(folder, "image", "label")
    assert len(decodings) == 2
    assert list(own_cache.iterdir()) == [file]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, cached, strict=True))


def test_failed_write_leaves_nothing_behind(tmp_path, own_cache, monkeypatch):
    folder = str(write_folder(tmp_path / "data", pixels()))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        hub(folder, "image", "label")
    assert list(own_cache.iterdir()) == []


def test_several_may_decode_at_the_same_time(tmp_path, own_cache, decodings):
    images = pixels(200)
    folder = str(write_folder(tmp_path / "data", images))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: hub(folder, "image", "label"), range(4)))
    assert [int(splits.train_images.sum()) for splits in results] == [int(images.sum())] * 4
    assert len(list(own_cache.iterdir())) == 1


def mixed_sizes(folder: Path) -> Path:
    return write_folder(folder, [*pixels(2), *pixels(1, (6, 6, 3))])


def transparent(folder: Path) -> Path:
    return write_folder(folder, pixels(shape=(5, 4, 4)))


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (
            write_folder,
            ("img", "label"),
            r"columns \['image', 'label'\], expected image_column='img' .*misses \['img'\]",
        ),
        (
            write_folder,
            ("image", "class"),
            r"misses \['class'\]: set data.source.image_column and data.source.label",
        ),
        (
            write_folder,
            ("label", "label"),
            r"column 'label' .*int64.*, expected encoded images: set data.source.image_c",
        ),
        (
            write_folder,
            ("image", "image"),
            r"column 'image' .*, expected whole numbers: set data.source.label_column",
        ),
        (mixed_sizes, ("image", "label"), r"image 2 of .* \(6, 6, 3\), expected \(5, 4, 3\) like the first"),
        (transparent, ("image", "label"), r"colour mode 'RGBA', expected 'L' \(grey\) or 'RGB'"),
    ],
    ids=["image", "label", "no image", "no label", "sizes", "mode"],
)
def test_unusable_folders_are_refused(tmp_path, make, columns, message):
    folder = make(tmp_path / "data", *([pixels()] if make is write_folder else []))
    with pytest.raises(ValueError, match=message):
        hub(str(folder), *columns)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder, expected one that holds train.parquet and"):
        hub(str(tmp_path / "nowhere"), "image", "label")


def test_folder_without_the_files_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    message = r"holds \['notes.txt'\], expected train.parquet and test.parquet: set data.path to the folder"
    with pytest.raises(FileNotFoundError, match=message):
        hub(str(tmp_path), "image", "label")


def test_hub_name_out_of_reach_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"data.path=owner/name is no folder here .* download it once .* local folder .* data.path=FOLDER"
    with pytest.raises(ConnectionError, match=message):
        hub("owner/name", "image", "label")


def test_hub_name_is_decoded_once(tmp_path, monkeypatch, decodings):
    import datasets

    files = write_folder(tmp_path / "data", pixels())
    loaded = datasets.load_dataset("parquet", data_files={s: str(files / f"{s}.parquet") for s in ("train", "test")})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *what: asked.append(what) or loaded)
    first, second = (hub("owner/name", "image", "label", name="small") for _ in range(2))
    assert asked == [("owner/name", "small")] * 2
    assert len(decodings) == 1
    assert torch.equal(first.train_images, second.train_images)


# ---- configurations


IMAGES = [file for file in sorted(CONF.glob("*.yaml")) if file.stem != "shakespeare"]  # for that see test_text.py


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)
def test_configurations_make_a_module_without_reading_data(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith(f"# python train.py data={file.stem}")
    config = OmegaConf.create({"seed_data": 7, "data": OmegaConf.load(file)})
    data = instantiate(config.data)
    assert (data.seed, data.shape, data.num_classes) == (7, tuple(config.data.shape), 10)


def test_path_can_be_set_on_the_command_line(tmp_path):
    folder = write_folder(tmp_path / "data", pixels(12, (28, 28)), labels=[0, 1] * 6)
    config = OmegaConf.create({"seed_data": 0, "data": OmegaConf.load(CONF / "mnist.yaml")})
    config.data.merge_with(
        {
            "path": str(folder),
            "val_size": 2,
            "augment": {"_target_": "lt_lightning.data.flip_crop", "_partial_": True, "padding": 4},
        }
    )
    data = instantiate(config.data)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (10, 1, 28, 28)
    assert len(labels) == 10


def test_wrong_path_is_an_error_before_training(tmp_path):
    config = OmegaConf.create({"seed_data": 0, "data": OmegaConf.load(CONF / "cifar10.yaml")})
    config.data.path = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        L.Trainer(**QUIET, max_epochs=1).fit(Recorder(), instantiate(config.data))


# ---- real data


@pytest.mark.skipif("LT_TEST_DATA" not in os.environ, reason="set LT_TEST_DATA to a folder with mnist/ and cifar10/")
@pytest.mark.parametrize(
    ("name", "columns", "shape", "counts", "mean"),
    [
        (
            "mnist",
            ("image", "label"),
            (1, 28, 28),
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            33.318421,
        ),
        pytest.param(*("cifar10", ("img", "label"), (3, 32, 32), [5000] * 10, 120.7076), marks=pytest.mark.slow),
    ],
)
def test_real_data(name, columns, shape, counts, mean):
    splits = hub(str(Path(os.environ["LT_TEST_DATA"]) / name), *columns)
    assert splits.train_images.shape[1:] == splits.test_images.shape[1:] == shape
    assert splits.train_labels.bincount().tolist() == counts
    assert len(splits.test_labels) == 10_000
    # JPEG copies of CIFAR-10 differ slightly from the original
    assert splits.train_images.double().mean().item() == pytest.approx(mean, abs=1e-6 if name == "mnist" else 0.1)
