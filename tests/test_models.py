import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR, StepLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lt_lightning.models import (
    Classifier,
    conv2,
    conv4,
    conv6,
    glorot_normal,
    lenet_300_100,
    resnet20,
    vgg16,
    vgg19,
    warmup_multistep,
)

CONF = Path(__file__).parents[1] / "conf" / "model"
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
NETWORKS = {
    "lenet_300_100": (lenet_300_100, MNIST),
    "conv2": (conv2, CIFAR),
    "conv4": (conv4, CIFAR),
    "conv6": (conv6, CIFAR),
    "resnet20": (resnet20, CIFAR),
    "vgg16": (vgg16, CIFAR),
    "vgg19": (vgg19, CIFAR),
}
LAYERS = nn.Linear | nn.Conv2d
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> nn.Module:
    network, shape = NETWORKS[name]
    return network(shape)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": m.weight for name, m in network.named_modules() if isinstance(m, LAYERS)}


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


# ---- counts

CONV_64 = 9 * (3 * 64 + 64 * 64)
CONV_128 = 9 * (64 * 128 + 128 * 128)
CONV_256 = 9 * (128 * 256 + 256 * 256)
RESNET_CONVS = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
RESNET_NORMS = 7 * 16 + 6 * 32 + 6 * 64 + (32 + 64)
VGG_CONVS = CONV_64 + CONV_128 + CONV_256 + 9 * (256 * 256 + 256 * 512 + 5 * 512 * 512)
VGG_NORMS = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512


@pytest.mark.parametrize(
    ("name", "derived", "published"),
    [
        ("lenet_300_100", 784 * 300 + 300 * 100 + 100 * 10, 266_200),
        ("conv2", CONV_64 + 64 * 16 * 16 * 256 + 256 * 256 + 256 * 10, 4_300_992),
        ("conv4", CONV_64 + CONV_128 + 128 * 8 * 8 * 256 + 256 * 256 + 256 * 10, 2_425_024),
        ("conv6", CONV_64 + CONV_128 + CONV_256 + 256 * 4 * 4 * 256 + 256 * 256 + 256 * 10, 2_261_184),
        ("resnet20", RESNET_CONVS + 2_560 + 64 * 10, 270_896),
        ("vgg16", VGG_CONVS + 512 * 10, 14_715_584),
        ("vgg19", VGG_CONVS + 9 * (256 * 256 + 2 * 512 * 512) + 512 * 10, 20_024_000),
    ],
)
def test_the_number_of_weights(name, derived, published):
    with torch.device("meta"):
        assert count(weights(make(name)).values()) == derived == published


def test_resnet20_counts_its_shortcuts_and_its_buffers_as_published():
    network = resnet20()
    shortcuts = [weight for name, weight in weights(network).items() if "shortcut" in name]
    running = [buffer for name, buffer in network.named_buffers() if "running" in name]
    assert count(shortcuts) == 16 * 32 + 32 * 64 == 2_560
    assert count(network.parameters()) == RESNET_CONVS + 2_560 + 640 + 10 + 2 * RESNET_NORMS == 272_474
    assert count(network.parameters()) + count(running) == 272_474 + 2 * RESNET_NORMS == 274_042


def test_vgg16_parameters_are_its_weights_its_norms_and_the_output_bias():
    with torch.device("meta"):
        assert count(vgg16().parameters()) == VGG_CONVS + 5_120 + 10 + 2 * VGG_NORMS == 14_724_042


def test_resnet20_width_scales_every_stage():
    with torch.device("meta"):
        narrow = weights(resnet20(width=2))
    assert narrow["conv1.weight"].shape == (2, 3, 3, 3)
    assert narrow["stage2.block1.shortcut.weight"].shape == (4, 2, 1, 1)
    assert narrow["output.weight"].shape == (10, 8)


# ---- names

BLOCKS = [f"stage{s}.block{b}.conv{c}.weight" for s in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)]
SHORTCUTS = ["stage2.block1.shortcut.weight", "stage3.block1.shortcut.weight"]
HEAD = ["hidden1.weight", "hidden2.weight", "output.weight"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet_300_100", HEAD),
        ("conv2", [f"conv{i}.weight" for i in range(1, 3)] + HEAD),
        ("conv4", [f"conv{i}.weight" for i in range(1, 5)] + HEAD),
        ("conv6", [f"conv{i}.weight" for i in range(1, 7)] + HEAD),
        ("resnet20", ["conv1.weight", *BLOCKS, *SHORTCUTS, "output.weight"]),
        ("vgg16", [f"conv{i}.weight" for i in range(1, 14)] + ["output.weight"]),
        ("vgg19", [f"conv{i}.weight" for i in range(1, 17)] + ["output.weight"]),
    ],
)
def test_the_names_that_patterns_are_written_against(name, expected):
    with torch.device("meta"):
        assert sorted(weights(make(name))) == sorted(expected)


# ---- first weights


@every_network
def test_weights_are_drawn_as_published(name):
    seed_everything(0)
    glorot = name.startswith(("lenet", "conv"))
    for weight in weights(make(name)).values():
        window = weight[0, 0].numel()
        fan_in, fan_out = weight.shape[1] * window, weight.shape[0] * window
        std = math.sqrt(2 / (fan_in + fan_out) if glorot else 2 / fan_in)
        n = weight.numel()
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))  # five standard errors
        assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(n))
        assert weight.abs().max() > 2 * std  # normal: a uniform of this variance ends at 1.73 standard deviations


@every_network
def test_biases_start_at_zero(name):
    biases = [value for key, value in make(name).named_parameters() if key.endswith("bias")]
    assert biases
    assert all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize("network", [resnet20, vgg16])
def test_batch_norm_scales_are_uniform_between_0_and_1(network):
    seed_everything(0)
    scales = torch.cat([m.weight for m in network().modules() if isinstance(m, nn.BatchNorm2d)])
    assert scales.min() >= 0
    assert scales.max() < 1
    assert scales.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / len(scales)))
    assert scales.var().item() == pytest.approx(1 / 12, rel=0.2)


@pytest.mark.parametrize("network", [resnet20, vgg19])
def test_another_initialization_may_be_chosen(network):
    made = network(initialize=glorot_normal)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
    fans = (3 * 9, made.conv1.out_channels * 9)
    assert made.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / sum(fans)), rel=0.15)


@pytest.mark.parametrize("network", [conv2, conv4, conv6])
def test_dropout_follows_both_hidden_layers(network):
    with torch.device("meta"):
        layers = [name for name, layer in network(dropout=0.5).named_children() if isinstance(layer, nn.Dropout)]
        assert layers == ["hidden1_dropout", "hidden2_dropout"]
        assert list(network(dropout=0.5).state_dict()) == list(network().state_dict())


@pytest.mark.parametrize("name", ["lenet_300_100", "conv4", "resnet20"])
def test_the_seed_decides_the_first_weights(name):
    states = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        states.append(make(name).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[f"{key}"], other[key]) for key in weights(make(name)))


# ---- layers

LETTERS = {
    "Conv2d": "C",
    "BatchNorm2d": "N",
    "ReLU": "R",
    "MaxPool2d": "P",
    "AdaptiveAvgPool2d": "A",
    "Flatten": "F",
    "Linear": "L",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet_300_100", "F LR LR L"),
        ("conv2", "CRCRP F LR LR L"),
        ("conv4", "CRCRP CRCRP F LR LR L"),
        ("conv6", "CRCRP CRCRP CRCRP F LR LR L"),
        ("vgg16", "CNRCNR P CNRCNR P CNRCNRCNR P CNRCNRCNR P CNRCNRCNR A F L"),
        ("vgg19", "CNRCNR P CNRCNR P CNRCNRCNRCNR P CNRCNRCNRCNR P CNRCNRCNRCNR A F L"),
    ],
)
def test_layers_follow_each_other_as_published(name, expected):
    with torch.device("meta"):
        assert "".join(LETTERS[type(layer).__name__] for layer in make(name)) == expected.replace(" ", "")


def normalized(features: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)
    factor = scale / (variance + 1e-5).sqrt()
    return (features - mean[:, None, None]) * factor[:, None, None]


def test_resnet20_computes_what_its_paper_writes():
    seed_everything(0)
    network = resnet20(width=2)
    value = dict(network.named_parameters())
    images = torch.randn(5, 3, 8, 8)
    hidden = normalized(conv2d(images, value["conv1.weight"], padding=1), value["norm1.weight"]).relu()
    for stage, block in [(s, b) for s in (1, 2, 3) for b in (1, 2, 3)]:
        at, shrinks = f"stage{stage}.block{block}", stage > 1 and block == 1
        inner = conv2d(hidden, value[f"{at}.conv1.weight"], padding=1, stride=2 if shrinks else 1)
        inner = normalized(inner, value[f"{at}.norm1.weight"]).relu()
        inner = normalized(conv2d(inner, value[f"{at}.conv2.weight"], padding=1), value[f"{at}.norm2.weight"])
        if shrinks:
            hidden = conv2d(hidden, value[f"{at}.shortcut.weight"], stride=2)
            hidden = normalized(hidden, value[f"{at}.shortcut_norm.weight"])
        hidden = (inner + hidden).relu()
    expected = hidden.mean((2, 3)) @ value["output.weight"].T
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)


# ---- shapes


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lenet_300_100, (3, 5, 7)),
        (conv2, (1, 28, 28)),
        (conv6, (1, 28, 28)),
        (conv2, (3, 2, 2)),
        (conv4, (3, 4, 6)),
        (conv6, (3, 9, 8)),
        (resnet20, (1, 28, 28)),
        (resnet20, (3, 1, 1)),
        (vgg16, (1, 16, 17)),
    ],
)
def test_logits_have_one_column_per_class(network, shape):
    logits = network(shape, 7)(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@every_network
def test_every_parameter_gets_a_gradient(name):
    network, shape = make(name), NETWORKS[name][1]
    network(torch.randn(2, *shape)).square().sum().backward()
    assert [key for key, value in network.named_parameters() if not value.grad.any()] == []


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (
            conv2,
            (3, 1, 8),
            "conv2 halves the image 1 times and needs at least 2x2 pixels, but shape is (3, 1, 8)",
        ),
        (
            conv4,
            (3, 3, 3),
            "conv4 halves the image 2 times and needs at least 4x4 pixels, but shape is (3, 3, 3)",
        ),
        (
            conv6,
            (3, 8, 7),
            "conv6 halves the image 3 times and needs at least 8x8 pixels, but shape is (3, 8, 7)",
        ),
        (
            vgg16,
            (3, 15, 32),
            "vgg16 halves the image 4 times and needs at least 16x16 pixels, but shape is (3, 15, 32): "
            "set data.shape to a larger image, or model to a network with fewer pools",
        ),
    ],
)
def test_an_image_too_small_for_the_pools_is_refused(network, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        network(shape)


@every_network
@pytest.mark.parametrize("shape", [(784,), (3, 0, 32), (2, 3, 32, 32)])
def test_a_shape_that_is_no_image_is_refused(name, shape):
    message = f"shape is {shape}, but an image has three positive sizes: set data.shape to [channels"
    with pytest.raises(ValueError, match=re.escape(message)):
        NETWORKS[name][0](shape)


# ---- learning-rate schedules


def rates(steps: int, **schedule) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = warmup_multistep(optimizer, **schedule)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warmup_rises_linearly_then_drops_at_each_milestone():
    expected = [0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    assert rates(10, warmup_steps=4, milestones=[6, 8], gamma=0.1) == pytest.approx(expected)


def test_a_milestone_inside_the_warmup_multiplies_it():
    expected = [0, 0.05, 0.05, 0.075, 0.1]
    assert rates(5, warmup_steps=4, milestones=[2], gamma=0.5) == pytest.approx(expected)


def test_without_warmup_the_drops_are_those_of_torch():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = MultiStepLR(optimizer, milestones=[2, 5], gamma=0.3)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(8, warmup_steps=0, milestones=[2, 5], gamma=0.3) == pytest.approx(expected)


def test_a_negative_warmup_is_refused():
    with pytest.raises(ValueError, match=re.escape("warmup_steps is -1, expected 0 (no warm-up) or more")):
        rates(1, warmup_steps=-1, milestones=[])


# ---- the classifier

SMALL, EXAMPLES, BATCH = (1, 4, 4), 10, 4  # batches of 4, 4 and 2: a plain mean of batch means is wrong


def examples(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(EXAMPLES, *SMALL, generator=generator)
    return TensorDataset(images, torch.randint(3, (EXAMPLES,), generator=generator))


def loader(seed: int) -> DataLoader:
    return DataLoader(examples(seed), batch_size=BATCH)


def trainer(tmp_path: Path, **options) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    silent = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    return Trainer(**quiet, **silent, **options)


def classifier(lr: float = 0.1, **options) -> Classifier:
    seed_everything(3)
    return Classifier(lenet_300_100(SMALL, 3), partial(SGD, lr=lr), num_classes=3, **options)


def by_hand(model: Classifier, seed: int) -> tuple[float, float]:
    images, labels = examples(seed).tensors
    with torch.no_grad():
        logits = model(images)
    right = sum(int(row.argmax()) == label for row, label in zip(logits, labels.tolist(), strict=True))
    return cross_entropy(logits, labels).item(), right / EXAMPLES


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
class TestClassifier:
    def test_logs_exactly_the_metrics_that_hand_computation_gives(self, tmp_path):
        model = classifier(lr=0)  # the weights stand still, so every batch is judged by the same network
        fit = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0)
        fit.fit(model, loader(1), loader(2))
        logged = {name: value.item() for name, value in fit.callback_metrics.items()}
        images, labels = examples(1)[8:10]
        last_batch = cross_entropy(model(images), labels).item()
        assert logged == {
            "train/loss": pytest.approx(last_batch),
            "train/acc": pytest.approx(by_hand(model, 1)[1]),
            "val/loss": pytest.approx(by_hand(model, 2)[0]),
            "val/acc": pytest.approx(by_hand(model, 2)[1]),
        }
        assert 0 < logged["train/acc"] < 1

    def test_test_metrics_weigh_every_example_the_same(self, tmp_path):
        model = classifier()
        [logged] = trainer(tmp_path).test(model, loader(4), verbose=False)
        loss, accuracy = by_hand(model, 4)
        assert logged == {"test/loss": pytest.approx(loss), "test/acc": pytest.approx(accuracy)}

    def test_training_takes_the_steps_of_plain_torch(self, tmp_path):
        model, twin = classifier(), classifier()
        trainer(tmp_path, max_epochs=2).fit(model, loader(1))
        optimizer = SGD(twin.parameters(), lr=0.1)
        for images, labels in [*loader(1), *loader(1)]:
            optimizer.zero_grad()
            cross_entropy(twin(images), labels).backward()
            optimizer.step()
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, msg=name)

    def test_the_state_is_the_network_alone(self):
        keys = [f"network.{layer}.{kind}" for layer in ("hidden1", "hidden2", "output") for kind in ("weight", "bias")]
        assert list(classifier().state_dict()) == keys
        assert dict(classifier().hparams) == {}

    @pytest.mark.parametrize(("interval", "halvings"), [("step", 6), ("epoch", 2)])
    def test_the_scheduler_advances_by_its_interval(self, tmp_path, interval, halvings):
        halve = partial(StepLR, step_size=1, gamma=0.5)
        model = classifier(scheduler=halve, scheduler_interval=interval)
        fit = trainer(tmp_path, max_epochs=2)
        fit.fit(model, loader(1))
        assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**halvings)

    def test_another_interval_is_refused(self):
        message = "scheduler_interval is 'batch', expected 'step' or 'epoch': set model.scheduler_interval"
        with pytest.raises(ValueError, match=re.escape(message)):
            classifier(scheduler_interval="batch")

    @pytest.mark.parametrize(
        "scheduler",
        [
            partial(MultiStepLR, milestones=[2, 4]),
            partial(warmup_multistep, warmup_steps=2, milestones=[4]),
        ],
    )
    def test_a_checkpoint_needs_no_trust_and_continues_the_schedule(self, tmp_path, scheduler):
        # One batch an epoch: where a plain loader continues after a restart must not matter here.
        data = DataLoader(examples(1), batch_size=EXAMPLES)
        half = trainer(tmp_path, max_steps=3)
        half.fit(classifier(scheduler=scheduler), data)
        half.save_checkpoint(tmp_path / "half.ckpt")
        torch.load(tmp_path / "half.ckpt", weights_only=True)

        whole, rest = trainer(tmp_path, max_steps=6), trainer(tmp_path, max_steps=6)
        whole.fit(uninterrupted := classifier(scheduler=scheduler), data)
        rest.fit(resumed := classifier(scheduler=scheduler), data, ckpt_path=tmp_path / "half.ckpt")
        assert rest.global_step == 6
        assert rest.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"] < 0.1
        for name, value in uninterrupted.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name


# ---- configurations


def compose(name: str, shape=CIFAR, num_classes: int = 10, *overrides: str) -> DictConfig:
    data = {"shape": list(shape), "num_classes": num_classes}
    root = OmegaConf.create({"data": data, "model": OmegaConf.load(CONF / f"{name}.yaml")})
    return OmegaConf.merge(root, OmegaConf.from_dotlist(list(overrides)))


def test_there_is_one_configuration_per_network():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*NETWORKS, "gpt"}  # for gpt see test_language.py


@every_network
def test_a_configuration_opens_with_its_usage_and_makes_its_network(name):
    data = "mnist" if name == "lenet_300_100" else "cifar10"
    assert (CONF / f"{name}.yaml").read_text().startswith(f"# python train.py model={name} data={data}\n")
    with torch.device("meta"):
        model = instantiate(compose(name, (1, 16, 16), 7).model)
        expected = NETWORKS[name][0]((1, 16, 16), 7)
    assert isinstance(model, Classifier)
    assert {k: v.shape for k, v in weights(model.network).items()} == {k: v.shape for k, v in weights(expected).items()}
    assert model.val_accuracy.num_classes == 7


@pytest.mark.parametrize(("name", "lr"), [("lenet_300_100", 1.2e-3), ("conv2", 2e-4), ("conv4", 3e-4), ("conv6", 3e-4)])
def test_the_small_networks_train_with_adam_at_a_constant_rate(name, lr):
    optimizer = instantiate(compose(name, (1, 8, 8)).model).configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == lr


@pytest.mark.parametrize(
    ("name", "interval", "drops"),
    [("resnet20", "step", [20_000, 25_000]), ("vgg16", "epoch", [80, 120]), ("vgg19", "epoch", [80, 120])],
)
def test_the_deep_networks_train_with_sgd_and_two_drops(name, interval, drops):
    optimizers = instantiate(compose(name).model).configure_optimizers()
    optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]
    assert type(optimizer) is SGD
    settings = {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
    assert settings == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}
    assert schedule["interval"] == interval
    assert type(schedule["scheduler"]) is MultiStepLR
    assert sorted(schedule["scheduler"].milestones.elements()) == drops
    assert schedule["scheduler"].gamma == 0.1


def test_resnet20_warms_up_with_the_overrides_in_its_file():
    text = (CONF / "resnet20.yaml").read_text()
    [line] = [line for line in text.splitlines() if "warmup_multistep" in line]
    overrides = [word.lstrip("+") for word in line.split() if "=" in word]
    model = instantiate(compose("resnet20", CIFAR, 10, *overrides).model)
    scheduler = model.configure_optimizers()["lr_scheduler"]["scheduler"]
    [factor] = scheduler.lr_lambdas
    assert scheduler.base_lrs == [0.03]
    assert [factor(step) for step in (0, 5_000, 19_999, 20_000, 25_000)] == pytest.approx([0, 0.25, 0.99995, 0.1, 0.01])


def test_factories_get_plain_lists():
    betas = "model.optimizer.betas=[0.8,0.9]"
    adam = instantiate(compose("conv2", (1, 4, 4), 10, betas).model).make_optimizer
    steps = instantiate(compose("resnet20").model).make_scheduler
    assert type(adam.keywords["betas"]) is list
    assert type(steps.keywords["milestones"]) is list


def test_accuracy_counts_as_torchmetrics_does():
    ours = Classifier(nn.Identity(), SGD, num_classes=4).train_accuracy
    theirs = MulticlassAccuracy(4, average="micro")
    draw = torch.Generator().manual_seed(0)
    for size in (7, 1, 60):
        logits = torch.randint(0, 3, (size, 4), generator=draw).float()  # with ties
        labels = torch.randint(0, 4, (size,), generator=draw)
        ours.update(logits, labels)
        theirs.update(logits, labels)
        assert torch.equal(ours.compute(), theirs.compute())
    ours.reset()
    ours.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    assert ours.compute() == 0.75
