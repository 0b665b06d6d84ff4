"""Every way that Lightning trains: the rows of `matrix.py`, each against a reference that knows nothing of tickets."""

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from matrix import METHODS, ROWS, check_interrupted, check_method, check_order, check_row
from tiny import loaders
from trained import Plain, trainer

from lt_lightning import lottery

pytestmark = [
    pytest.mark.lightning_matrix,
    pytest.mark.filterwarnings("ignore:LightningCLI's args", "ignore:.*deprecated in v4:DeprecationWarning"),
]


def rows(*, interrupted=False):
    """The names of the table, each with what pytest has to know of it."""
    for name, row in ROWS.items():
        marks = []
        if row.needs == "cuda" and not torch.cuda.is_available():
            marks.append(pytest.mark.skip(reason=f"{name} needs a GPU"))
        if not interrupted and row.seldom:
            marks.append(pytest.mark.slow)
        if interrupted:
            marks += [] if row.telling else [pytest.mark.slow]
            marks += [] if row.stop else [pytest.mark.skip(reason=f"{name} counts as nothing, so nothing continues")]
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(rows()))
def test_a_ticket_trains_as_a_network_masked_by_other_means(tmp_path, name):
    check_row(tmp_path, name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if row.telling else [pytest.mark.slow])
        for name, row in ROWS.items()
        if row.make_callbacks()
    ],
)
def test_the_order_of_callbacks_does_not_change_the_result(tmp_path, name):
    check_order(tmp_path, name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if row.telling else [pytest.mark.slow]) for name, row in METHODS.items()]
)
def test_a_method_keeps_as_much_as_was_asked_for_and_ends_with_the_same_bits_after_kills(tmp_path, name):
    check_method(tmp_path / "alone", name)
    check_interrupted(tmp_path, name)


@pytest.mark.parametrize("name", list(rows(interrupted=True)))
def test_an_interrupted_row_ends_with_the_same_bits(tmp_path, name):
    check_interrupted(tmp_path, name)


def test_a_learning_rate_monitor_and_its_logger_work(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    options = {"logger": CSVLogger(tmp_path / "logs"), "log_every_n_steps": 1}
    for ticket in lottery(Plain, rounds=0, directory=tmp_path / "run", monitor=None):
        fit = trainer(ticket.directory, [LearningRateMonitor(), ticket], options)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    assert "lr-Adam" in (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").read_text()


def test_a_checkpoint_callback_that_writes_into_the_ticket_s_files_is_refused(tmp_path):
    for ticket in lottery(Plain, rounds=0, directory=tmp_path):
        fit = trainer(ticket.directory, [ModelCheckpoint(dirpath=ticket.directory, save_last=True), ticket], {})
        with pytest.raises(
            ValueError, match=r"could replace them: leave dirpath out, or write dirpath=ticket\.directo"
        ):
            fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        fit = trainer(ticket.directory, [ModelCheckpoint(dirpath=ticket.directory + "/checkpoints"), ticket], {})
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


class Bare(Plain):
    """Without `self.log`, which Lightning cannot compile under torch 2.13."""

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self(batch[0])


def compiled(module, backend):
    return torch.compile(module, backend=backend)


def with_a_compiled_layer(module, backend):
    module.hidden = torch.compile(module.hidden, backend=backend)
    return module


@pytest.mark.parametrize("compile", [compiled, with_a_compiled_layer])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh modules", "an instance"])
def test_no_round_compiles_again(tmp_path, compile, fresh):
    """One graph for training and one for evaluation, in round 0; masks and rewinds change values, and no guard.

    This holds for modules that are made anew in each round, as long as they share the backend function.
    """
    torch._dynamo.reset()
    graphs, counts = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def make():
        return compile(Bare(), backend)

    for ticket in lottery(make if fresh else make(), rounds=3, directory=tmp_path, monitor=None):
        fit = trainer(ticket.directory, [ticket], {})
        fit.fit(ticket.model, *loaders(shuffle=False), ckpt_path=ticket.ckpt_path)
        counts.append(len(graphs))
    assert counts == [2, 2, 2, 2]
