"""Criteria at initialization: values computed by hand, and whole runs with each."""

from functools import partial

import lightning as L
import pytest
import torch
from app import run
from tiny import Tiny, play, trainer
from torch import nn

from lt_lightning import at_init, lottery
from lt_lightning.at_init import grasp, snip, synflow
from lt_lightning.criteria import Evidence
from lt_lightning.data import Images, digits
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.exchange.ticketfile import read
from lt_lightning.fit import probe
from lt_lightning.models import Classifier, lenet_300_100
from lt_lightning.records import read_records
from lt_lightning.schedules import one_shot
from lt_lightning.scopes import globally, select

CRITERIA = [snip, grasp, synflow]


def unasked(*_):
    raise AssertionError("nobody asked for this evidence")


def evidence(module, *batches, density=0.5, masks=None, scope=globally):
    """Evidence of a module at its rewind point."""
    return Evidence(
        round=0,
        masks=masks or {name: torch.ones(p.shape).bool() for name, p in module.named_parameters() if p.dim() > 1},
        density=density,
        scope=scope,
        seed=0,
        read_initial=unasked,
        read_point=unasked,
        read_trained=unasked,
        model=unasked,
        batches=lambda: iter(batches),
        make_module=lambda: made(module),
    )


def made(module):
    copied = probe.copy.deepcopy(module)
    copied.log = probe._ignore
    return copied.train()


class Line(L.LightningModule):
    """y = w · x, trained by squared error."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([weights]))

    def training_step(self, batch, index):
        x, y = batch
        return ((x @ self.w.T).squeeze(1) - y).square().mean()


def test_snip_is_gradient_times_weight():
    x, y = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1.0])
    scores = snip(evidence(Line([3.0, -0.5, 7.0]), (x, y)))["w"]  # w · x - y = 1, so the gradient is 2 x
    assert scores.tolist() == [[6.0, 2.0, 0.0]]


def test_snip_of_several_batches_is_that_of_their_mean_loss():
    x, y = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5])
    module = Line([3.0, -0.5, 7.0])
    together = snip(evidence(module, (x, y)))["w"]
    apart = snip(evidence(module, (x[:1], y[:1]), (x[1:], y[1:])), batches=2)["w"]
    assert torch.allclose(apart, 2 * together)


class Quadratic(L.LightningModule):
    """w^T A w / 2: the gradient is A w, the Hessian A."""

    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0]]))

    def training_step(self, batch):
        return {"loss": batch * (self.w @ self.A @ self.w.T).sum() / 2}


def test_grasp_is_weight_times_hessian_times_gradient():
    # g = A w = (0, -5), H g = (-5, -15), w · Hg = (-5, 30)
    assert grasp(evidence(Quadratic(), torch.tensor(1.0)), temperature=1)["w"].tolist() == [[-5.0, 30.0]]
    assert grasp(evidence(Quadratic(), torch.tensor(1.0)), temperature=1, absolute=True)["w"].tolist() == [[5.0, 30.0]]


def test_grasp_of_several_batches_has_the_gradient_of_all():
    # losses l and 3 l: together H = 4 A, g = 4 A w
    given = evidence(Quadratic(), torch.tensor(1.0), torch.tensor(3.0))
    assert grasp(given, temperature=1, batches=2)["w"].tolist() == [[-80.0, 480.0]]


def test_a_loss_without_curvature_scores_nothing():
    class Straight(Quadratic):
        def training_step(self, batch):
            return self.w.sum()

    assert grasp(evidence(Straight(), None), temperature=1)["w"].tolist() == [[0.0, 0.0]]


class Logits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_the_temperature_divides_what_forward_returns():
    torch.manual_seed(0)
    module, x, y = Logits(), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    weight = module.layer.weight.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(x @ weight.T / 50, y)
    (g,) = torch.autograd.grad(loss, weight, create_graph=True)
    (hg,) = torch.autograd.grad((g * g.detach()).sum(), weight)
    assert torch.allclose(grasp(evidence(module, (x, y)), temperature=50)["layer.weight"], weight * hg)


class Flow(L.LightningModule):
    """Two linear layers, no bias."""

    def __init__(self, norm=False):
        super().__init__()
        self.one, self.two = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        with torch.no_grad():
            self.one.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [4.0, 1.0, -1.0]]))
            self.two.weight.copy_(torch.tensor([[1.0, -3.0], [-0.5, 2.0]]))

    def forward(self, x):
        return self.two(torch.relu(self.norm(self.one(x))))


BATCH = (torch.zeros(4, 3), torch.zeros(4).long())


def test_synflow_is_the_flow_through_a_weight():
    scores = synflow(evidence(Flow(), BATCH), iterations=1)
    # out of unit 1 flow |1| + |-.5| = 1.5, out of unit 2 |-3| + |2| = 5; into them 3.5 and 6
    assert scores["one.weight"].tolist() == [[1.5, 3.0, 0.75], [20.0, 5.0, 5.0]]
    assert scores["two.weight"].tolist() == [[3.5, 18.0], [1.75, 12.0]]


def test_the_flow_is_conserved_at_every_unit():
    """Theorem 2 of the paper: of a unit's weights, those in and those out have the same sum of scores."""
    scores = synflow(evidence(Flow(), BATCH), iterations=1)
    assert torch.allclose(scores["one.weight"].sum(1), scores["two.weight"].sum(0))


def test_synflow_scores_anew_what_it_has_left():
    given = evidence(Flow(), BATCH, density=0.3)
    masks = given.masks
    for step in (1, 2):
        pruned = Flow()
        for name, parameter in pruned.named_parameters():
            parameter.data *= masks[name]
        scores = synflow(evidence(pruned, BATCH), iterations=1)
        masks = select(scores, masks, 0.3 ** (step / 3), globally)
    for name, score in synflow(given, iterations=3).items():
        assert torch.equal(score < 0, ~masks[name])


def test_synflow_keeps_what_single_shot_would_lose():
    """A layer with little flow in each of its many weights collapses in one shot, and does not in a hundred."""
    torch.manual_seed(0)

    class Wide(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(2, 60, bias=False), nn.Linear(60, 60, bias=False), nn.Linear(60, 2, bias=False)
            )

        def forward(self, x):
            return self.layers(x)

    given = evidence(Wide(), (torch.zeros(1, 2),), density=0.003)
    kept = {}
    for iterations in (1, 100):
        masks = select(synflow(given, iterations=iterations), given.masks, 0.003, globally)
        kept[iterations] = [int(mask.sum()) for mask in masks.values()]
    assert sum(kept[1]) == sum(kept[100]) == 12
    assert min(kept[1]) == 0
    assert min(kept[100]) > 0


def test_synflow_leaves_batch_norm_and_the_module_alone():
    module = Flow(norm=True)
    module.norm.running_mean.fill_(-2.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scores = synflow(evidence(module, BATCH), iterations=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    # (3.5 - |-2|) and (6 - |-2|), over a variance of 1 + 1e-5, flow into the second layer
    assert scores["two.weight"].tolist() == [pytest.approx([1.5, 12.0], rel=1e-4), pytest.approx([0.75, 8.0], rel=1e-4)]


def test_pruned_weights_take_no_part():
    masks = {
        "one.weight": torch.tensor([[True, True, True], [False, True, True]]),
        "two.weight": torch.ones(2, 2).bool(),
    }
    scores = synflow(evidence(Flow(), BATCH, masks=masks), iterations=1)
    assert scores["one.weight"].tolist() == [[1.5, 3.0, 0.75], [-1.0, 5.0, 5.0]]
    assert scores["two.weight"].tolist() == [[3.5, 6.0], [1.75, 4.0]]
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])
    assert snip(evidence(Line([3.0, 5.0]), (x, y), masks={"w": torch.tensor([[True, False]])}))["w"].tolist() == [
        [12.0, 0.0]
    ]


def test_examples_of_each_class_are_the_first_of_the_epoch():
    x, y = torch.arange(8.0).view(8, 1), torch.tensor([1, 1, 0, 1, 0, 2, 2, 0])
    chosen, labels = at_init._of_each_class(iter([(x[:3], y[:3]), (x[3:], y[3:])]), 2, "snip")
    assert chosen.flatten().tolist() == [2, 4, 0, 1, 5, 6]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_equal_whatever_was_drawn_before_and_draw_nothing_themselves(criterion):
    module, batch = Tiny(), (torch.randn(20, 8), torch.randint(0, 3, (20,)))
    given = evidence(module, batch)
    first = criterion(given)
    torch.rand(3)
    before = torch.get_rng_state()
    again = criterion(given)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == ["hidden.weight", "output.weight"]
    assert all(torch.equal(first[name], again[name]) and first[name].isfinite().all() for name in first)
    assert module.seen == []


# Refusing


class Nothing(Line):
    def training_step(self, batch, index):
        return None


class Several(Line):
    def training_step(self, batch, index):
        return self.w


class Manual(Line):
    def __init__(self, weights):
        super().__init__(weights)
        self.automatic_optimization = False


class Synchronous(Line):
    def __init__(self, weights):
        super().__init__(weights)
        self.norm = nn.SyncBatchNorm(2)


REFUSED = [
    (snip, Nothing, "snip needs a loss, and training_step of Nothing returned None: it has to return a scalar with a "
     'gradient, or {"loss": scalar}.'),
    (snip, Several, "snip needs a loss, and training_step of Several returned a tensor of shape (1, 2): it has to "
     'return a scalar with a gradient, or {"loss": scalar}.'),
    (grasp, Manual, "grasp needs the loss that training_step returns, and Manual has automatic_optimization=False: its "
     "training_step takes the steps itself. Choose a criterion that looks at weights, such as magnitude."),
    (grasp, Line, "grasp divides the logits by a temperature, and training_step of Line does not call self(...), whose "
     "result they are: let it do so, or choose temperature=1 (prune.criterion.temperature=1)."),
    (snip, Synchronous, "snip is computed by one process, for which the SyncBatchNorm of Synchronous would wait: leave "
     "out sync_batchnorm=True, or choose a criterion that looks at weights, such as magnitude."),
    (partial(snip, per_class=2), Line, "snip can take examples per class only of batches (inputs, int64 labels "
     "[batch]), and these are others: leave out per_class (prune.criterion.per_class=null), and say how many batches."),
    (partial(snip, batches=0), Line, "batches=0 of snip must be a whole number, 1 or more."),
    (partial(synflow, iterations=0), Line, "iterations=0 of synflow must be a whole number, 1 or more; the paper's is "
     "100."),
]  # fmt: skip


@pytest.mark.parametrize(("criterion", "module", "message"), REFUSED)
def test_what_has_no_scores_is_refused_with_what_to_do(criterion, module, message):
    given = evidence(module([1.0, 2.0]), (torch.ones(2, 2), torch.ones(2)), masks={"w": torch.ones(1, 2).bool()})
    with pytest.raises(ValueError, match=r"\w") as error:
        criterion(given)
    assert str(error.value) == message


def test_tokens_have_no_ones():
    given = evidence(Flow(), torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match=r"first in a batch is torch\.int64: set example_input_array of Flow"):
        synflow(given)
    module = Flow()
    module.example_input_array = torch.zeros(5, 3)
    assert synflow(evidence(module, torch.zeros(2, 3).long()), iterations=1)["one.weight"][0, 0] == 1.5


@pytest.mark.parametrize("criterion", CRITERIA)
def test_sharded_weights_are_refused(criterion, monkeypatch):
    monkeypatch.setattr(at_init, "any_sharded", lambda masks: True)
    with pytest.raises(ValueError, match="needs whole weights, and here each process holds a part: train under"):
        criterion(evidence(Line([1.0])))


# Whole runs


def masks_of(directory, round=1):
    return dict(read(directory / f"round-{round:02d}" / "ticket.safetensors").masks)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_run_prunes_at_initialization_whatever_a_dense_round_learns(tmp_path, criterion):
    for dense in (False, True):
        play(tmp_path / str(dense), criterion=criterion, schedule=one_shot(0.3), dense=dense)
    one, other = masks_of(tmp_path / "False"), masks_of(tmp_path / "True")
    assert sum(int(mask.sum()) for mask in one.values()) == round(0.3 * 132)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = read_records(tmp_path / "False" / "records.csv")
    assert [row["steps"] for row in rows] == [0, 15]


def test_a_run_scores_the_first_batch_of_epoch_0_at_the_rewind_point(tmp_path):
    class Still(Tiny):
        def __init__(self):
            super().__init__()
            self.drop.p = 0.0

    seen = []

    def by_hand(evidence):
        module, (x, y) = Still(), next(evidence.batches())
        module.load_state_dict(Checkpoint(tmp_path / "rewind.ckpt")["state_dict"])
        seen.append(round(float(x.sum()), 4))
        weights = {name: module.get_parameter(name) for name in evidence.masks}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(evidence.masks[name])
        loss = nn.functional.cross_entropy(module(x), y)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        found = snip(evidence)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            assert torch.allclose(found[name], (weight * gradient).abs())
        return found

    models = play(tmp_path, model=Still, criterion=by_hand, schedule=one_shot(0.3), rewind_step=7)
    assert set(seen) == {models["round-00"].seen[0][2]}


@pytest.mark.parametrize("criterion", [snip, partial(grasp, per_class=3)])
def test_a_run_that_ends_before_it_has_drawn_draws_the_same_afterwards(tmp_path, criterion):
    """Our own loaders come back with the position at which the fit ended."""

    def once_failing(evidence):
        criterion(evidence)
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise RuntimeError("no disk, no power")
        return criterion(evidence)

    def train(directory, criterion):
        images = Images(digits, shape=[1, 8, 8], num_classes=10, batch_size=64, val_size=200, seed=0, mean=[0], std=[1])
        for ticket in lottery(make, rounds=1, directory=directory, criterion=criterion, monitor=None, density=0.2):
            fit = trainer(ticket, max_epochs=2)
            fit.fit(ticket.model, images, ckpt_path=ticket.ckpt_path)

    def make():
        return Classifier(lenet_300_100((1, 8, 8)), partial(torch.optim.SGD, lr=0.1))

    train(tmp_path / "whole", criterion)
    with pytest.raises(RuntimeError, match="no power"):
        train(tmp_path / "again", once_failing)
    train(tmp_path / "again", once_failing)
    one, other = masks_of(tmp_path / "whole"), masks_of(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "at_init"])
@pytest.mark.parametrize("model", ["lenet_300_100", "resnet20"])
def test_every_method_at_initialization_runs_from_the_command_line(tmp_path, images, method, model):
    options = [f"prune={method}", f"model={model}", "data.batch_size=20"]
    if model == "resnet20":
        options += ["data=cifar10", f"data.path={images / 'cifar10'}", "data.val_size=100"]
        options += ["prune.criterion.iterations=5"] if method == "synflow" else []
    run(tmp_path, *options, "trainer=smoke", "prune.density=0.05")
    masks = masks_of(tmp_path / "fast_dev_run")
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.05 * total)


def test_a_module_with_manual_optimization_is_told_before_its_weights_are_lost(tmp_path):
    class Own(Tiny):
        def __init__(self):
            super().__init__(schedule=False)
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    with pytest.raises(ValueError, match="no ticket can be drawn from round 0: snip needs the loss that training_step"):
        play(tmp_path, model=Own, criterion=snip)
