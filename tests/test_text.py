"""Texts: windows of characters, their order, and where they come from."""

from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import nn

from lt_lightning.data import Text, WindowLoader
from lt_lightning.data.characters import encode, read_text
from lt_lightning.data.windows import NO_TARGET
from lt_lightning.models import language_model

CONF = Path(__file__).parent.parent / "conf" / "data"
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def loader(count=50, context=4, **changes) -> WindowLoader:
    return WindowLoader(torch.arange(count), context, **{"batch_size": 3, "seed": 0, "shuffle": True} | changes)


def batches(source, epoch=0) -> list[tuple[list, list]]:
    source.set_epoch(epoch)
    return [(tokens.tolist(), targets.tolist()) for tokens, targets in source]


def rows(source, epoch=0) -> list[list[int]]:
    return [row for tokens, _ in batches(source, epoch) for row in tokens]


def counted(source) -> list[int]:
    return sorted(target for _, targets in batches(source) for row in targets for target in row if target != NO_TARGET)


# ---- windows


@given(count=st.integers(2, 90), context=st.integers(1, 12), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_training_sees_each_token_at_most_once_an_epoch_and_nearly_all(count, context, batch, seed):
    if count < 2 * context:
        return
    source = loader(count, context, batch_size=batch, seed=seed)
    for epoch in range(2):
        windows = sorted(rows(source, epoch))
        assert [token for row in windows for token in row] == list(
            range(windows[0][0], windows[0][0] + len(windows) * context)
        )
        assert len(windows) == source.count > (count - 2 * context) // context
        for tokens, targets in batches(source, epoch):
            assert [[token + 1 for token in row] for row in tokens] == targets


@given(count=st.integers(2, 60), context=st.integers(1, 12), batch=st.integers(1, 5), world_size=st.integers(1, 4))
def test_evaluation_counts_each_token_once_whatever_the_ranks(count, context, batch, world_size):
    options = {"shuffle": False, "batch_size": batch * world_size, "world_size": world_size}
    ranks = [loader(count, context, **options, rank=rank) for rank in range(world_size)]
    assert sorted(token for source in ranks for token in counted(source)) == list(range(1, count))
    assert len({len(list(source)) for source in ranks}) == 1
    tokens = [token for source in ranks for row in rows(source) for token in row]
    assert min(tokens) >= 0
    assert max(tokens) < count


@given(batch=st.integers(1, 6), world_size=st.integers(1, 4))
def test_ranks_divide_the_training_batches_of_one_process(batch, world_size):
    single = batches(loader(97, batch_size=batch * world_size))
    options = {"batch_size": batch * world_size, "world_size": world_size}
    ranks = [batches(loader(97, **options, rank=rank)) for rank in range(world_size)]
    for step, (tokens, _) in enumerate(single):
        joined = [row for each in ranks for row in each[step][0]]
        assert joined[: len(tokens)] == tokens
        assert len(joined) - len(tokens) < world_size


def test_order_and_offset_are_a_function_of_seed_and_epoch():
    assert rows(loader(), 1) == rows(loader(), 1)
    assert rows(loader(), 0) != rows(loader(), 1)
    assert len({min(rows(loader(seed=seed)))[0] for seed in range(20)}) == 4


def test_order_is_pinned_so_that_runs_can_be_repeated_by_later_versions():
    assert [row[0] for row in rows(loader(24))] == [10, 2, 18, 14, 6]


def test_a_loader_goes_on_at_the_next_batch():
    source = loader()
    whole, iterator = batches(loader(), 1), iter(source)
    source.set_epoch(1)
    next(iterator)
    state = source.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [(tokens.tolist(), targets.tolist()) for tokens, targets in resumed] == whole[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"count": 7},
            "7 tokens for windows of data.context=4, expected a context of at least 1 and at least 8 tokens",
        ),
        ({"count": 1, "shuffle": False}, "at least 2 tokens: set data.context, or data.path to a longer text"),
        ({"batch_size": 3, "world_size": 2}, "data.batch_size=3 does not divide by 2 processes"),
    ],
)
def test_impossible_windows_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        loader(**changes)


def test_the_module_and_the_loader_mean_the_same_by_no_target():
    assert language_model.NO_TARGET == NO_TARGET


# ---- the data module


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch[0].tolist()))
        return self.layer(batch[0].float().mean().view(1, 1)).square().mean()

    def validation_step(self, batch, index):
        assert batch[0].shape[1] == 16

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def text(plays, **changes) -> Text:
    size = len(set(plays.read_text()))
    return Text(str(plays), **{"vocabulary": size, "context": 16, "batch_size": 64, "seed": 0} | changes)


def decoded(plays, source) -> str:
    characters = encode(plays.read_text())[1]
    pairs = [(tokens, targets) for tokens, targets in source]
    kept = [targets[targets != NO_TARGET] for _, targets in pairs]
    return "".join(characters[n] for n in [int(pairs[0][0][0, 0]), *torch.cat(kept).tolist()])


def test_the_end_of_the_text_is_the_validation_and_the_test(plays):
    data = text(plays)
    data.setup("fit")
    whole = plays.read_text()
    assert (
        decoded(plays, data.val_dataloader())
        == whole[int(0.9 * len(whole)) :]
        == decoded(plays, data.test_dataloader())
    )
    assert len(data._parts["train"]) == int(0.9 * len(whole))


def test_a_test_text_may_be_set_aside_behind_the_validation(plays):
    data = text(plays, test_fraction=0.25)
    data.setup()
    whole = plays.read_text()
    assert decoded(plays, data.test_dataloader()) == whole[int(0.75 * len(whole)) :]
    assert decoded(plays, data.val_dataloader()) == whole[int(0.65 * len(whole)) : int(0.75 * len(whole))]


def test_a_resumed_fit_sees_exactly_the_remaining_batches(plays, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = Recorder()
    L.Trainer(**QUIET, max_epochs=2, callbacks=[keep]).fit(whole, text(plays))
    assert len(whole.seen) > 8
    for step in range(1, len(whole.seen), 3):
        module, trainer = Recorder(), L.Trainer(**QUIET, max_epochs=2, enable_checkpointing=False)
        trainer.fit(module, text(plays), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert module.seen == whole.seen[step:]


def test_overfit_batches_repeats_the_same_batches(plays):
    module = Recorder()
    L.Trainer(**QUIET, max_epochs=2, overfit_batches=2, enable_checkpointing=False).fit(module, text(plays))
    assert [row for _, _, row in module.seen[:2]] == [row for _, _, row in module.seen[2:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0, expected at least 1: set data.batch_size=1"),
        ({"context": 0}, "data.context=0, expected at least 1"),
        ({"val_fraction": 0.0}, r"data.val_fraction=0.0 and data.test_fraction=0.0, expected .* data.val_fraction=0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "expected shares of the text that leave some to train on"),
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused_at_once(plays, changes, message):
    with pytest.raises(ValueError, match=message):
        text(plays, **changes)


def test_another_vocabulary_is_refused_before_training(plays):
    with pytest.raises(
        ValueError, match=r"different characters, expected data.vocabulary=65: set data.vocabulary=\d\d"
    ):
        text(plays, vocabulary=65).prepare_data()


def test_a_loader_before_setup_is_refused(plays):
    with pytest.raises(RuntimeError, match=r"no data yet: call setup\('fit'\) first"):
        text(plays).train_dataloader()


# ---- where a text comes from


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_characters_are_numbered_in_their_order(written):
    numbers, characters = encode(written)
    assert characters == sorted(set(written))
    assert "".join(characters[n] for n in numbers) == written


def test_a_file_and_the_folder_that_holds_it_are_the_same(tmp_path):
    (tmp_path / "play.txt").write_text("Où est-ce?", encoding="utf-8")
    assert read_text(str(tmp_path)) == read_text(str(tmp_path / "play.txt")) == "Où est-ce?"
    (tmp_path / "input.txt").write_text("two", encoding="utf-8")
    assert read_text(str(tmp_path)) == "two"


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds \[\], expected input.txt or a single .txt file: set data.path to"
    ):
        read_text(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a.txt is no text in UTF-8 .*: convert it, or set data.path to a text"):
        read_text(str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.txt is no file or folder, .* set data.path=FILE, data.path=FOLDER"
    ):
        read_text(str(tmp_path / "nowhere.txt"))


def test_a_data_set_of_the_hub_is_joined_in_order(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    parts = {"test": ["e"], "train": ["a", "b"], "validation": ["cd"]}
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": part}) for name, part in parts.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    assert read_text("owner/name") == "abcde"
    with pytest.raises(ValueError, match=r"columns \['text'\], expected data.text_column='Text': set data.text_column"):
        read_text("owner/name", "Text")


def test_a_hub_name_out_of_reach_says_how_to_get_it(tmp_path, monkeypatch):
    import datasets

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConnectionError, match=r"data.path=owner/name .* or give a local text: data.path=FILE"):
        read_text("owner/name")


def test_the_configuration_makes_a_module_without_reading_data():
    file = CONF / "shakespeare.yaml"
    assert file.read_text().startswith("# python train.py model=gpt data=shakespeare")
    data = instantiate(OmegaConf.create({"seed_data": 7, "data": OmegaConf.load(file)}).data)
    assert (data.seed, data.vocabulary, data.context, data.batch_size) == (7, 65, 64, 12)
