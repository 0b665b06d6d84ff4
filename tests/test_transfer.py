"""A ticket that was found elsewhere, trained here."""

import shutil
from functools import partial

import pytest
import torch
from app import composed, run
from hydra.utils import instantiate
from test_messages import Watched, refused
from tiny import Tiny, loaders, play, trainer
from torch import nn

from lt_lightning import load_ticket, transfer
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.masks import density
from lt_lightning.records import read_records


class NewHead(Watched):
    """The same body, five classes."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(12, 5)


class Other(Watched):
    """Nothing here has a shape of `Tiny`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.output = nn.Linear(8, 13), nn.BatchNorm1d(13), nn.Linear(13, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run with tickets at 64% and 41%, rewound to step 3, so that its tickets hold batch norm's statistics too."""
    path = tmp_path_factory.mktemp("found")
    play(path, rounds=2, density=None, rewind_step=3, test=False, seed=5)
    return path


def train(path, directory, model=Tiny, options=None, **arguments):
    """Transfer a ticket; the weights at the first step of each fit, by name."""
    started = {}
    for ticket in transfer(model, path=path, directory=directory, every="1 epoch", **arguments):
        train, validation = loaders()
        fit = trainer(ticket, **({"max_epochs": 2} | (options or {})))
        fit.fit(ticket.model, train, validation, ckpt_path=ticket.ckpt_path)
        fit.test(ticket.model, validation, verbose=False)
        start = RunDirectory(directory).arm(ticket.round).start
        started[ticket.name] = Checkpoint(start)["state_dict"] if start.exists() else None
    return started


def fit_next(tickets):
    ticket = next(tickets)
    trainer(ticket, max_epochs=2).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


def ticket_of(run, round=2):
    return run / f"round-{round:02d}" / "ticket.safetensors"


def test_it_trains_the_masks_and_weights_of_the_ticket(found, tmp_path):
    starts = train(ticket_of(found), tmp_path, model=partial(Tiny, torch.optim.SGD), seed=1)
    saved = load_ticket(ticket_of(found))
    trained = load_ticket(ticket_of(tmp_path, 1))
    assert all(torch.equal(trained.masks[name], mask) for name, mask in saved.masks.items())
    assert set(starts["round-01"]) == set(saved.state)
    assert all(torch.equal(starts["round-01"][name], value) for name, value in saved.state.items())
    assert all(torch.equal(trained.state[name], value) for name, value in saved.state.items())
    final = Checkpoint(RunDirectory(tmp_path).arm(1).final)["state_dict"]
    for name, mask in saved.masks.items():
        assert not final[name][~mask].any()
        assert not torch.equal(final[name][mask], saved.state[name][mask])
    rows = read_records(tmp_path / "records.csv")
    assert [(row["round"], row["density"], row["steps"]) for row in rows] == [
        (0, 1.0, 0),
        (1, density(saved.masks), 10),
    ]


def test_fresh_weights_are_those_of_the_seed(found, tmp_path):
    train(ticket_of(found), tmp_path, weights="fresh", seed=1)
    ticket = load_ticket(ticket_of(tmp_path, 1))
    point = Checkpoint(RunDirectory(tmp_path).point(0))["state_dict"]
    assert all(torch.equal(ticket.state[name], value) for name, value in point.items())
    saved = load_ticket(ticket_of(found))
    assert not torch.equal(ticket.state["hidden.weight"], saved.state["hidden.weight"])
    assert torch.equal(ticket.masks["hidden.weight"], saved.masks["hidden.weight"])


def test_a_new_head_stays_dense_and_is_listed(found, tmp_path):
    listed = r"1 masks fit the model\. Without one, so dense: output\.weight\. Masks of no use here: output\.weight\."
    with pytest.warns(UserWarning, match=listed):
        train(ticket_of(found), tmp_path, NewHead)
    saved, ticket = load_ticket(ticket_of(found)), load_ticket(ticket_of(tmp_path, 1))
    assert ticket.masks["output.weight"].all()
    assert torch.equal(ticket.masks["hidden.weight"], saved.masks["hidden.weight"])
    assert torch.equal(ticket.state["hidden.weight"], saved.state["hidden.weight"])
    assert torch.equal(ticket.state["norm.running_mean"], saved.state["norm.running_mean"])
    kept = int(saved.masks["hidden.weight"].sum()) + 60
    assert read_records(tmp_path / "records.csv")[1]["density"] == kept / (96 + 60)


def test_parameters_may_be_left_out(found, tmp_path):
    with pytest.warns(UserWarning, match=r"so dense: none\. Masks of no use here: output\.weight\."):
        train(ticket_of(found), tmp_path, prunable=["hidden*.weight"])
    assert set(load_ticket(ticket_of(tmp_path, 1)).masks) == {"hidden.weight"}


def test_controls_and_the_dense_network_train_beside_it(found, tmp_path):
    train(ticket_of(found), tmp_path, controls=["reinit", "random_mask"], dense=True)
    rows = {(row["round"], row["arm"]): row for row in read_records(tmp_path / "records.csv")}
    assert {key: row["steps"] for key, row in rows.items()} == {
        (0, "ticket"): 10, (1, "ticket"): 10, (1, "reinit"): 10, (1, "random_mask"): 10,
    }  # fmt: skip
    assert len({row["density"] for (round, _), row in rows.items() if round}) == 1
    state = load_ticket(tmp_path / "round-01" / "random_mask" / "ticket.safetensors").state
    assert torch.equal(state["hidden.weight"], load_ticket(ticket_of(found)).state["hidden.weight"])


def test_it_goes_on_after_an_interruption_with_the_same_bits(found, tmp_path):
    train(ticket_of(found), tmp_path / "whole")
    tickets = transfer(Tiny, path=ticket_of(found), directory=tmp_path / "killed")
    fit_next(tickets)
    next(tickets)
    tickets.close()
    assert ticket_of(tmp_path / "killed", 1).exists()
    train(ticket_of(found), tmp_path / "killed")
    finals = [Checkpoint(RunDirectory(tmp_path / name).arm(1).final)["state_dict"] for name in ("whole", "killed")]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert ticket_of(tmp_path / "whole", 1).read_bytes() == ticket_of(tmp_path / "killed", 1).read_bytes()


def test_another_ticket_in_the_same_directory_is_refused(found, tmp_path):
    train(ticket_of(found), tmp_path / "run")
    with pytest.raises(ValueError, match=r"lottery\.scope\.path: .*round-02.* there, .*round-01"):
        train(ticket_of(found, 1), tmp_path / "run")


def test_what_cannot_work_is_refused_before_training(found, tmp_path):
    def act(path=None, model=Watched, **arguments):
        return lambda: train(path or ticket_of(found), tmp_path / "run", model, **arguments)

    refused(act(tmp_path / "none"), FileNotFoundError, "is no ticket file (prune.path", "Name a round-NN/ticket")
    refused(act(found / "round-02"), FileNotFoundError, "is no ticket file", f"one of its tickets: {ticket_of(found)}")
    refused(act(found / "round-02" / "final.ckpt"), ValueError, "is not a ticket of format 'lt_lightning 2'")
    refused(act(ticket_of(found, 0)), ValueError, "keeps every weight: it is a ticket of round 0")
    refused(
        act(model=Other), ValueError,
        "the ticket fits nothing of the model: it has masks for hidden.weight (12, 8), output.weight (3, 12), and the "
        "model's prunable parameters are hidden.weight (13, 8), output.weight (3, 13).",
    )  # fmt: skip
    refused(act(weights="old"), ValueError, 'weights=\'old\' must be "ticket" or "fresh"')
    refused(act(rounds=2), ValueError, "rounds=2: a saved ticket is trained in one round")
    refused(act(rewind_step="5 steps"), ValueError, "rewind_step='5 steps': round 1 starts from the ticket's weights")
    refused(act(density=0.1), ValueError, "density: masks come from the ticket here")
    refused(act(criterion=print), ValueError, "criterion: masks come from the ticket here")


def test_a_ticket_that_is_gone_or_another_when_masks_are_drawn_is_noticed(found, tmp_path):
    copy = shutil.copy(ticket_of(found), tmp_path / "a.safetensors")
    tickets = transfer(Watched, path=copy, directory=tmp_path / "run")
    shutil.copy(ticket_of(found, 1), copy)
    refused(lambda: fit_next(tickets), ValueError, "is not any more the ticket that it was when the run began")


def test_the_command_line_trains_a_ticket(tmp_path):
    run(tmp_path / "first", "trainer.max_epochs=1", "prune.rounds=1", "prune.controls=[]")
    path = tmp_path / "first" / "round-01" / "ticket.safetensors"
    run(tmp_path / "second", "prune=ticket", f"prune.path={path}", "trainer.max_epochs=1", "seed=1")
    rows = read_records(tmp_path / "second" / "records.csv")
    assert [row["seed"] for row in rows] == [1, 1]
    assert rows[1]["density"] == density(load_ticket(path).masks)


def test_without_a_path_the_command_line_says_which_value_is_missing(tmp_path):
    with pytest.raises(Exception, match=r"which ticket\? Pass path=\.\.\., prune\.path=\.\.\. on the command line"):
        instantiate(composed("prune=ticket").prune)(Tiny, directory=tmp_path)
