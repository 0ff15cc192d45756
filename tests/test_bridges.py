"""Attention and losses on networks that others wrote: MONAI's, torchvision's, and a few with the habits of neither."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from attenscribble.data.batches import SliceStore, batches
from attenscribble.data.phantom import phantom
from attenscribble.method.network import Dropout, UNet2d
from attenscribble.method.objective import METHODS, LossContext, Objective, attention_of
from attenscribble.method.other_networks import Adapter, Layer, _main_answer, _network_named, build_network, layers_of
from attenscribble.method.ssa import AttendedLayer, attach
from attenscribble.method.switches import MethodSwitches
from attenscribble.runs.config import PROFILES, Config
from attenscribble.runs.inference import load_network
from attenscribble.runs.run import run_experiment

WIDTHS = (8, 16, 32, 32)
IMAGE = torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def torchvision_segmentation():
    """torchvision's segmentation networks. A torchvision built for another torch: its models are plain Python, only its
    compiled operators are missing; here they are declared, so that it can be imported."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("needs torchvision")
    except RuntimeError as error:
        assert "torchvision::" in str(error)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
            for operator in (name, f"_{name}_backward"):
                library.define(f"{operator}(Tensor x) -> Tensor")
    import torchvision.models.segmentation as segmentation

    return segmentation


def monai(name):
    nets = pytest.importorskip("monai.networks.nets")
    return {"BasicUNet": lambda: nets.BasicUNet(2, 1, 4, features=(*WIDTHS, 32, 8)),
            "DynUNet": lambda: nets.DynUNet(2, 1, 4, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=WIDTHS),
            "UNet": lambda: nets.UNet(2, 1, 4, WIDTHS, [2] * 3, num_res_units=1)}[name]()


LAYERS = {"BasicUNet": "down_2", "DynUNet": "downsamples.1", "UNet": "model.1.submodule.0", "lraspp": "backbone.3"}


@pytest.fixture(params=LAYERS)
def case(request):
    "A network that takes gray images and gives logits, the part that holds its layers, and the layer's name."
    torch.manual_seed(0)
    name = request.param
    if name == "lraspp":
        torchvision = request.getfixturevalue("torchvision_segmentation")
        model = Adapter(torchvision.lraspp_mobilenet_v3_large(num_classes=4, weights_backbone=None), channels=3)
        return model, model.network, LAYERS[name]
    model = monai(name)
    return model, model, LAYERS[name]


@pytest.fixture(scope="module")
def loader():
    dataset = phantom(patients=2, side=48, slices=4, seed=1)
    store = SliceStore(dataset.cases(), classes=4, ignore=dataset.ignore)
    order = batches(len(store), 4, torch.Generator().manual_seed(0))
    return [store.batch(next(order), 48) for _ in range(14)]


def test_a_few_steps_lower_the_loss_and_reach_the_attention(case, loader):
    model, inner, name = case
    attention = attach(inner, name, block="residual").attention
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    switches = MethodSwitches(asl_radius=1, asl_sigma_xy=1.125)
    before, losses = copy.deepcopy(attention.state_dict()), []
    for batch in loader:
        loss, terms = Objective(METHODS["ours"])(LossContext(model(batch.image), batch, switches, model))
        assert {"seg", "mcrf", "atn"} <= set(terms) and torch.isfinite(loss)
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad.any() for parameter in attention.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(not torch.equal(before[name], value) for name, value in attention.state_dict().items())


def test_detached_it_is_what_it_was_and_copies_carry_it(case):
    model, inner, name = case
    model.eval()
    plain, names = model(IMAGE), list(model.state_dict())
    attachment = attach(inner, name, block="residual")
    attended = model(IMAGE)
    assert not torch.equal(attended, plain) and attachment.attention.query.shape[0] == 2
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IMAGE), attended)
    for part in attention_of(twin).parameters():
        nn.init.zeros_(part)
    assert not torch.equal(twin(IMAGE), attended)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(IMAGE), attended)
    attachment.detach()
    assert torch.equal(model(IMAGE), plain) and list(model.state_dict()) == names
    assert not any(isinstance(part, AttendedLayer) for part in model.modules())


def test_the_layer_is_found_by_measuring(case):
    model, _, name = case
    model.train()
    modes = [part.training for part in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    layers = {layer.name.removeprefix("network."): layer for layer in layers_of(model, IMAGE)}
    assert layers[name].stride == 4 and layers[name].grid == (12, 12) and layers[name].calls == 1
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())  # batch statistics too
    holder = model.network if isinstance(model, Adapter) else model
    assert attach(holder, name).attention.channels == layers[name].channels


def test_a_compiler_takes_it():
    model = monai("BasicUNet").eval()
    attention = attach(model, "down_2", block="residual").attention
    attended = model(IMAGE)
    assert_close(torch.compile(model, backend="eager")(IMAGE), attended)
    assert attention.grid == (12, 12)


class Twice(nn.Module):
    "A layer that stands under two names and runs under the second, inside a holder that stands twice as well."

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1)])
        self.inside = nn.ModuleDict({"stage": self.stages[0]})
        self.again = self.inside

    def forward(self, image):
        return self.again["stage"](image)


def test_a_layer_with_several_names_is_attended_under_all():
    for name in ("stages.0", "inside.stage", "again.stage"):
        model = Twice()
        plain = model(IMAGE)
        attachment = attach(model, name)
        assert not torch.equal(model(IMAGE), plain)
        assert model.stages[0] is model.inside["stage"] is model.again["stage"]
        attachment.detach()
        assert torch.equal(model(IMAGE), plain) and isinstance(model.stages[0], nn.Conv2d)


def test_a_layer_beside_which_the_next_writes_in_place():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    model.to(memory_format=torch.channels_last)  # as in training: then query and key keep the features themselves
    plain = model(IMAGE)
    attention = attach(model, "0", separate=True).attention
    out = model(IMAGE)
    assert torch.equal(out, plain)
    (out.sum() + attention.query.sum()).backward()
    assert attention.layers[0].attention.query.weight.grad.any()


def test_attention_on_a_layer_that_never_runs_is_named(loader):
    model = UNet2d(1, 4)
    model.spare = nn.Conv2d(1, 8, 3)
    attach(model, "spare")
    with pytest.raises(ValueError, match="ssa_layer: found attention attached to a layer that never runs, expected"):
        Objective(METHODS["ours"])(LossContext(model(loader[0].image), loader[0], MethodSwitches(), model))


def test_a_network_without_attention_or_with_two_is_named(loader):
    model, batch, switches = UNet2d(1, 4), loader[0], MethodSwitches()
    with pytest.raises(ValueError, match="network: found no spatial self-attention, expected it for"):
        Objective(METHODS["ours"])(LossContext(model(batch.image), batch, switches, model))
    for name in ("encoder.2", "encoder.3"):
        attach(model, name)
    with pytest.raises(ValueError, match="network: found 2 attention modules in UNet2d, expected no second"):
        Objective(METHODS["ours"])(LossContext(model(batch.image), batch, switches, model))


def test_attention_for_the_way_down_alone_stands_before_the_next_stage():
    model = build_network(METHODS["ours"], 1, 4, MethodSwitches(ssa_to_skip=False))
    stages = {number: stage for number, stage in enumerate(model.encoder) if isinstance(stage, AttendedLayer)}
    assert [(number, stage.where) for number, stage in stages.items()] == [(3, "input")]
    assert attention_of(model).channels == 64  # the width of encoder.2, whose output it attends
    with pytest.raises(ValueError, match=r"ssa_layer: found 'down_2', expected encoder\.0, encoder\.1, "):
        build_network(METHODS["ours"], 1, 4, MethodSwitches(ssa_to_skip=False, ssa_layer="down_2"))


def test_layers_inside_others_are_left_out_unless_asked_for():
    model = UNet2d(1, 4)
    outer, inner = layers_of(model, IMAGE), layers_of(model, IMAGE, inner=True)
    assert [layer.name for layer in outer][:5] == [f"encoder.{i}" for i in range(5)]
    assert "encoder.2.1" in {layer.name for layer in inner} - {layer.name for layer in outer}
    assert all(not layer.name.startswith("attention") for layer in inner)
    shared = nn.Conv2d(1, 1, 3, padding=1)
    assert layers_of(nn.Sequential(shared, nn.ReLU(), shared), IMAGE)[0].calls == 2
    with pytest.raises(RuntimeError):  # a wrong image leaves no ear behind, and no mode changed
        layers_of(nn.Sequential(shared), IMAGE[:, :0])
    assert not shared._forward_hooks and shared.training


@pytest.mark.parametrize("profile", ["smoke", "mini"])
def test_windows_are_those_of_the_profiles(profile):
    fills = PROFILES[profile]
    layers = {layer.name: layer for layer in layers_of(UNet2d(1, 4), torch.rand(1, 1, fills["size"], fills["size"]))}
    assert layers["encoder.2"].window == (fills["asl_radius"], fills["asl_sigma_xy"])
    released = MethodSwitches()
    assert Layer("", "", 64, (64, 64), 4, 1).window == (released.asl_radius, released.asl_sigma_xy)


def test_main_answers():
    a, b = torch.rand(2, 1, 4, 4, 4)
    for answer in (a, {"aux": b, "out": a}, {"logits": a, "loss": 1}, {"any": a}, [a, b], (a,)):
        assert _main_answer(answer) is a
    for answer, found in ((None, "NoneType"), ({"aux": a, "main": b}, "dict ['aux', 'main']"), ([], "list"),
                         (torch.rand(2, 3), "Tensor [2, 3]"), ({"out": 3}, "dict ['out']")):
        with pytest.raises(TypeError, match=r"network: found .* expected logits") as caught:
            _main_answer(answer)
        assert found in str(caught.value)


def test_an_adapter_repeats_gray_and_brings_logits_to_the_image():
    network = nn.Sequential(nn.Conv2d(3, 5, 4, 4))
    out = Adapter(network, channels=3)(IMAGE)
    assert_close(out, F.interpolate(network(IMAGE.repeat(1, 3, 1, 1)), (48, 48), mode="bilinear"))
    colour = torch.rand(1, 3, 8, 8)
    assert Adapter(network, channels=3)(colour).shape == (1, 5, 8, 8)


def ours_with(name, layer="down_2", **options):
    return Config(net_name=name, net_options=options, ssa_layer=layer, ssa_block="residual")


def test_a_run_names_its_network(tmp_path, own_cache):
    pytest.importorskip("monai")
    config = Config(
        net_name="monai.networks.nets:BasicUNet", net_options='{"features": [8, 8, 16, 16, 16, 8]}', ssa_layer="down_2",
        iterations=3, batch=4, size=32, data_patients=5, data_side=32, data_slices=2, asl_radius=1, asl_sigma_xy=0.75,
        output=str(tmp_path))
    outcome = run_experiment(config)
    assert outcome.result["settings"]["net_options"] == {"features": [8, 8, 16, 16, 16, 8]}
    assert attention_of(outcome.model).grid == (8, 8) and (outcome.folder / "attention.png").is_file()
    network = load_network(outcome.folder / "checkpoint.pt")
    model, again = network.model, network.config
    assert again.run_id == config.run_id != Config().run_id
    image = IMAGE[..., :32, :32]
    assert torch.equal(model(image), outcome.model(image))


@pytest.mark.parametrize("method", ["ours", "pce"])
def test_options_of_our_own_network(method, tmp_path):
    config = Config(method=method, net_options='{"channels": [4, 8, 8, 8, 8], "dropout": [0, 0, 0, 0, 0]}')
    model = build_network(METHODS[method], 1, 4, config)
    assert model.head.in_channels == 4 and not any(isinstance(part, Dropout) for part in model.modules())
    assert config.run_id != Config(method=method).run_id
    assert any(isinstance(part, Dropout) for part in build_network(METHODS[method], 1, 4, Config()).modules())


def test_a_layer_that_is_not_there_leaves_no_folder(tmp_path):
    config = Config(ssa_layer="encoder.9", data_patients=5, data_side=32, data_slices=2, size=32,
                    asl_radius=1, output=str(tmp_path))
    with pytest.raises(ValueError, match=r"encoder\.9"):
        run_experiment(config)
    assert not any(tmp_path.iterdir())


def test_a_torchvision_network_by_name(torchvision_segmentation):
    config = ours_with("torchvision.models.segmentation:lraspp_mobilenet_v3_large", "backbone.3")
    model = build_network(METHODS["ours"], 1, 4, config).eval()
    assert model.channels == 3 and model(IMAGE).shape == (2, 4, 48, 48)
    assert build_network(METHODS["pce"], 3, 4, config).channels is None
    with pytest.raises(ValueError, match="takes 3 channels, the dataset has 2"):
        build_network(METHODS["pce"], 2, 4, config)


def test_only_what_declares_itself_a_network_is_called(tmp_path):
    for name in ("os:system", "subprocess:run", "builtins:exec", "torch:load", "torch.nn:functional"):
        with pytest.raises(ValueError, match=r"net_name: found .* expected a class of networks"):
            _network_named(name)
    for name in ("BasicUNet", "", "no.such.package:Net", "torch.nn:Nothing", ":Net", "torch.nn:"):
        with pytest.raises(ValueError, match=r"expected package\.module:Name"):
            _network_named(name)
    with pytest.raises(ValueError, match="net_name: found 'os:system'"):
        Config(net_name="os:system")


@pytest.mark.parametrize("setting", ["net_name", "method"])
@pytest.mark.parametrize("code,why", [
    ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
    ("1 / 0", "ZeroDivisionError: division by zero"), ("class Net(:", "SyntaxError: .*line 1")])
def test_a_module_that_stops_is_named_with_its_reason(tmp_path, monkeypatch, setting, code, why):
    name = f"stops_{setting}_{len(code)}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"{setting}: found '{name}:Net', whose module stops with {why}"):
        Config(**{setting: f"{name}:Net"})


@pytest.mark.parametrize("given,message", [
    ({"net_options": "{'a'"}, "net_options: found .*Expecting"),
    ({"net_options": {"a": 1}}, r'net_options: the U-Net refuses {"a": 1}: .*\'a\''),
    ({"net_options": {"classes": 3}}, "net_options: the U-Net refuses .*multiple values"),
    ({"net_options": {"dropout": [0, 0]}}, "net_options: the U-Net refuses .*dropout: found .*expected 5 numbers"),
    ({"net_options": {"dropout": [0] * 5}, "method": "dual-branch"}, "net_options: method 'dual-branch' has a network"),
    ({"net_name": "torch.nn:ReLU", "method": "dual-branch"}, "method 'dual-branch' has a network of its own"),
])
def test_settings_that_make_no_network(given, message):
    with pytest.raises(ValueError, match=message):
        Config(**given)


@pytest.mark.parametrize("name,options,message", [
    ("torch.nn:ReLU", {}, "torch.nn:ReLU takes inplace, expected out_channels or num_classes"),
    ("monai.networks.nets:BasicUNet", {"featurs": 3}, "net_options: .*BasicUNet refuses .*featurs"),
    ("monai.networks.nets:BasicUNet", {"out_channels": 3}, "net_options: out_channels comes from the dataset"),
    ("monai.networks.nets:DynUNet", {}, "net_options: .*DynUNet refuses {}: .*kernel_size"),
])
def test_networks_that_do_not_fit(name, options, message):
    pytest.importorskip("monai")
    with pytest.raises(ValueError, match=message):
        build_network(METHODS["ours"], 1, 4, ours_with(name, **options))
