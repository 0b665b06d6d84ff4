"""Which hooks of a step somebody has, and that Lightning passes over those of ours that are empty."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from tiny import Tiny, loaders, trainer

from lt_lightning import lottery
from lt_lightning.fit.hooks import END, START, WITHIN, hooked, leave_out_empty


class Ending(Callback):
    def on_train_batch_end(self, *_):
        pass


@pytest.mark.parametrize("name", [START, END, *WITHIN])
def test_a_hook_is_found_in_a_class_and_on_an_instance(name):
    callback = Callback()
    setattr(callback, name, lambda *_: None)
    module = type("Module", (L.LightningModule,), {name: lambda self, *_: None})()
    assert hooked(L.LightningModule(), [Callback(), callback]) == {name}
    assert hooked(module, []) == {name}
    assert hooked(L.LightningModule(), [Callback()]) == set()


def test_only_what_is_empty_is_left_out():
    callback = Ending()
    leave_out_empty(callback)
    assert callable(callback.on_train_batch_end)
    assert [getattr(callback, name) for name in (START, *WITHIN)] == [None] * 5
    assert hooked(L.LightningModule(), [callback]) == {END}


def test_lightning_calls_no_empty_hook_of_ours(tmp_path):
    for ticket in lottery(Tiny, rounds=0, directory=tmp_path, monitor=None):
        fit = trainer(ticket, max_epochs=1)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        called = {
            (type(each).__name__, name)
            for each in fit.callbacks
            for name in (START, END, *WITHIN)
            if callable(getattr(each, name))
        }
    assert called == {("Ticket", END)}
