"""The ticket file: what it holds, byte by byte, and that anything which reads safetensors reads it."""

import hashlib
import json
import platform
import re

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import play

import lt_lightning
from lt_lightning import load_ticket
from lt_lightning.exchange import ticketfile
from lt_lightning.exchange.ticketfile import TicketFile, pack, read, tensors_of, unpack
from lt_lightning.records import read_records

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@st.composite
def some_masks(draw):
    """Masks of any shape, scalars and empty ones among them, of one weight or more in all."""
    found = {"first": torch.tensor(draw(st.lists(st.booleans(), min_size=1, max_size=20)))}
    for n, shape in enumerate(draw(st.lists(shapes, max_size=3))):
        bits = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        found[f"layer.{n}.weight"] = torch.tensor(bits, dtype=torch.bool).reshape(shape)
    return found


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@given(
    masks=some_masks(),
    round=st.integers(0, 99),
    arm=st.sampled_from(["ticket", "reinit", "größer"]),
    start=st.sampled_from(["point", "file", "fresh"]),
)
@settings(deadline=None, max_examples=50)
def test_what_is_written_is_read_back(tmp_path_factory, masks, round, arm, start):
    path = tmp_path_factory.mktemp("ticket") / "ticket.safetensors"
    state = {"w": torch.randn(3, 2), "batches": torch.tensor(5), "half": torch.ones(2, dtype=torch.bfloat16)}
    TicketFile(masks, state, round, arm, start, "0123abcd").write(path)
    found = read(path, state=True)
    same(found.masks, masks)
    assert {name: value.dtype for name, value in found.state.items()} == {n: v.dtype for n, v in state.items()}
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    assert (found.round, found.arm, found.start, found.config) == (round, arm, start, "0123abcd")


@given(bits=st.lists(st.booleans(), min_size=1, max_size=70))
def test_masks_are_packed_as_numpy_packs_them_an_eighth_of_a_byte_per_weight(bits):
    packed = pack(torch.tensor(bits))
    assert packed.dtype == torch.uint8
    assert packed.numpy().tobytes() == np.packbits(np.array(bits)).tobytes()
    assert packed.numel() == -(-len(bits) // 8)
    by_hand = [sum(128 >> n for n, bit in enumerate(bits[at : at + 8]) if bit) for at in range(0, len(bits), 8)]
    assert packed.tolist() == by_hand


def test_masks_are_packed_in_row_major_order_whatever_their_memory_looks_like():
    mask = torch.tensor([[True, False, False, False, False], [True, True, False, False, True]])
    assert pack(mask).tolist() == [0b10000110, 0b01000000]
    turned = mask.t()
    assert pack(turned).tolist() == pack(turned.contiguous()).tolist() == [0b11010000, 0b01000000]
    assert torch.equal(unpack(pack(turned), [5, 2]), turned)


def test_a_scalar_mask_is_one_bit():
    assert pack(torch.tensor(True)).tolist() == [128]
    assert unpack(torch.tensor([128], dtype=torch.uint8), []).tolist() is True


MASKS = {
    "hidden.weight": torch.tensor([[True, False, True], [False, False, True], [True, True, True]]),
    "output.weight": torch.tensor([False, True, True, False]),
}


def test_the_metadata_are_strings_that_say_what_the_ticket_is(tmp_path):
    TicketFile(MASKS, {}, 3, "reinit", "fresh", "00ff").write(tmp_path / "t")
    content = (tmp_path / "t").read_bytes()
    checksum = re.search(r'"sha256":"(\w+)"', content.decode(errors="replace"))[1]
    assert hashlib.sha256(content.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum
    with safe_open(tmp_path / "t", framework="np") as file:
        assert file.metadata() == {
            "format": "lt_lightning 2",
            "round": "3",
            "arm": "reinit",
            "density": "0.6153846153846154",
            "start": "fresh",
            "config": "00ff",
            "sha256": checksum,
            "shapes": '{"hidden.weight": [3, 3], "output.weight": [4]}',
            "versions": json.dumps(ticketfile.versions()),
        }
    assert ticketfile.versions() == {
        "lt_lightning": lt_lightning.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def test_metrics_and_versions_are_read_back_and_may_be_missing(tmp_path):
    given = TicketFile(MASKS, {}, metrics={"test/acc": 0.1 + 0.2, "steps": 30}, versions={"torch": "2.6"})
    given.write(tmp_path / "t")
    found = load_ticket(tmp_path / "t")
    assert found.metrics == {"test/acc": 0.1 + 0.2, "steps": 30}
    assert found.versions == {"torch": "2.6"}, "a copy keeps those that made it"
    found.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "t").read_bytes()
    arrays, metadata = load_file(tmp_path / "t"), {"format": ticketfile.FORMAT, "round": "0", "arm": "ticket"}
    with_checksum(tmp_path / "old", arrays, metadata | {"start": "point", "config": "", "shapes": "{}"})
    old = load_ticket(tmp_path / "old")
    assert (old.metrics, old.versions) == ({}, {})


def with_checksum(path, arrays, metadata):
    """A safetensors file of another hand that has a checksum as ours have it."""
    save_file(arrays, path, metadata | {"sha256": "0" * 64})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode()))


def test_a_mask_of_another_size_than_its_shape_is_refused(tmp_path):
    rest = {"format": ticketfile.FORMAT, "round": "0", "arm": "ticket", "start": "point", "config": ""}
    with_checksum(tmp_path / "t", {"mask/w": np.zeros(2, np.uint8)}, rest | {"shapes": '{"w": [1000, 1000]}'})
    with pytest.raises(ValueError, match=r"a mask of shape \[1000, 1000\] takes 125000 bytes, and there are 2"):
        load_ticket(tmp_path / "t")


def test_a_loaded_ticket_knows_what_the_fit_that_began_with_it_measured(tmp_path):
    play(tmp_path, rounds=1, controls=["reinit"])
    rows = {row["arm"]: row for row in read_records(tmp_path / "records.csv") if row["round"] == 1}
    for arm, folder in (("ticket", "round-01"), ("reinit", "round-01/reinit")):
        found = load_ticket(tmp_path / folder)
        expected = {key: value for key, value in rows[arm].items() if key not in ("round", "arm", "density")}
        assert found.metrics == pytest.approx(expected)
        assert "test/acc" in found.metrics
        assert ticketfile.read(tmp_path / folder / "ticket.safetensors").metrics == {}, "the file was there before"
    assert load_ticket(tmp_path / "round-01" / "next").metrics == {}, "nothing has begun with it"
    (tmp_path / "round-01" / "done").write_text("damaged")
    assert load_ticket(tmp_path / "round-01").metrics == {}


def test_safetensors_and_numpy_are_enough_to_read_a_ticket(tmp_path):
    TicketFile(MASKS, {"hidden.weight": torch.arange(9.0).view(3, 3)}, 1).write(tmp_path / "t")
    arrays = load_file(tmp_path / "t")
    assert sorted(arrays) == ["mask/hidden.weight", "mask/output.weight", "state/hidden.weight"]
    with safe_open(tmp_path / "t", framework="np") as file:
        shapes = json.loads(file.metadata()["shapes"])
    for name, shape in shapes.items():
        bits = np.unpackbits(arrays[f"mask/{name}"], count=int(np.prod(shape))).astype(bool).reshape(shape)
        assert bits.tolist() == MASKS[name].tolist()
    assert arrays["state/hidden.weight"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_the_same_ticket_gives_the_same_bytes(tmp_path):
    for n in range(8):
        TicketFile(MASKS, {"w": torch.ones(2)}, 1).write(tmp_path / str(n))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_tied_weights_and_views_are_written_each_with_its_own_values(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    TicketFile(MASKS, {"encoder": weight, "decoder": weight, "turned": weight.t()}).write(tmp_path / "t")
    state = read(tmp_path / "t", state=True).state
    assert state["encoder"].tolist() == state["decoder"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert state["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_is_not_asked_for_is_not_loaded(tmp_path, monkeypatch):
    TicketFile(MASKS, {"w": torch.ones(2)}).write(tmp_path / "t")
    loaded = []

    class Listening:
        def __init__(self, *args, **kwargs):
            self.file = safe_open(*args, **kwargs)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def get_tensor(self, name):
            loaded.append(name)
            return self.file.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(ticketfile, "safe_open", Listening)
    found = read(tmp_path / "t")
    assert found.state == {}
    assert loaded == []
    assert torch.equal(found.masks["output.weight"], MASKS["output.weight"])
    assert loaded == ["mask/output.weight"]
    assert list(read(tmp_path / "t", state=True).state) == ["w"]


@pytest.mark.parametrize(
    ("metadata", "seen"),
    [(None, "None"), ({"format": "pt"}, "'pt'"), ({"format": "lt_lightning 1"}, "'lt_lightning 1'")],
)
def test_a_file_of_another_format_is_refused_with_what_it_says(tmp_path, metadata, seen):
    save_file({"w": np.ones(2)}, tmp_path / "t", metadata)
    with pytest.raises(ValueError, match="is not a ticket") as error:
        read(tmp_path / "t")
    assert str(error.value) == f"{tmp_path / 't'} is not a ticket of format 'lt_lightning 2'; it says {seen}."


def test_extra_state_that_is_no_tensor_has_no_place_in_a_ticket():
    weight = torch.ones(2)
    assert tensors_of({"w": weight, "_extra_state": {"a": 1}, "none": None}) == {"w": weight}
