"""Spatial self-attention against torch's own attention, and what attaching it does to a network."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

from attenscribble.method.network import UNet2d
from attenscribble.method.ssa import AttendedLayer, SpatialSelfAttention, attach, attend, attention_maps, plot_attention

BLOCKS = ("paper", "residual", "prenorm_mixffn")
HEAVY = ("torch._dynamo", "matplotlib", "scipy", "pandas", "psutil", "pydantic", "ipywidgets")


class Tiny(nn.Module):
    "Two stages and a skip: the first stage's output is read twice."

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1))
        self.grow = nn.Upsample(scale_factor=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Conv2d(14, 3, 1)

    def forward(self, image):
        first = self.first(image)
        self.flat(self.pool(first))
        return self.head(torch.cat((first, self.grow(self.second(first))), 1))


@pytest.fixture
def image():
    return torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))


def names_and_values(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def by_multihead(module, features):
    "One paper layer, its heads as torch.nn.MultiheadAttention computes them, for d_q = d_v = d / n."
    layer, width = module.layers[0], module.channels
    torchs = nn.MultiheadAttention(width, layer.attention.heads, bias=False, batch_first=True, dtype=features.dtype)
    weights = [getattr(layer.attention, name).weight for name in ("query", "key", "value")]
    torchs.in_proj_weight.data, torchs.out_proj.weight.data = torch.cat(weights), torch.eye(width).to(features)
    tokens = features.flatten(2).transpose(1, 2)
    a, shares = torchs(tokens, tokens, tokens, average_attn_weights=False)
    norm, widen, act, narrow = layer.mlp
    a = a + narrow(act(widen(norm(a))))
    return module.last(a).transpose(1, 2).unflatten(2, features.shape[2:]), shares


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_paper_block_is_multihead_attention_and_an_mlp(heads):
    torch.manual_seed(0)
    module = SpatialSelfAttention(8, heads).double()
    for parameter in module.parameters():  # far from the small start values, so that attention is not even
        nn.init.normal_(parameter)
    features = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    expected, shares = by_multihead(module, features)
    assert_close(module(features), expected)
    assert_close(attention_maps(module.query, module.key, (8 // heads) ** -0.5), shares)
    module.block = "residual"
    assert_close(module(features), features + expected)


def test_released_block_is_the_equation_of_the_code():
    torch.manual_seed(0)
    module = SpatialSelfAttention(6, block="prenorm_mixffn").double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 6, 4, 3, dtype=torch.float64)
    layer, tokens = module.layers[0], x.flatten(2).transpose(1, 2)
    q, k, v = (linear(layer.norm(tokens)) for linear in layer.attention.children())
    x1 = tokens + layer.join((q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v)
    hidden = layer.widen(layer.norm_mix(x1)).transpose(1, 2).view(1, 24, 4, 3)
    hidden = F.conv2d(hidden, layer.neighbours.weight, layer.neighbours.bias, padding=1, groups=24)
    x2 = x1 + layer.narrow(F.gelu(hidden).flatten(2).transpose(1, 2))
    assert_close(module(x), module.last(x2).transpose(1, 2).view_as(x))


def test_parameters_are_as_many_as_in_the_released_network():
    model = UNet2d(1, 4)
    attention = attach(model, "encoder.2", block="prenorm_mixffn").attention
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert (count(attention.layers), count(attention.last), count(attention.similarity)) == (52_352, 128, 2)
    assert count(model) == 1_866_246


@pytest.mark.parametrize("block", BLOCKS)
def test_start_values(block):
    torch.manual_seed(0)
    module = SpatialSelfAttention(64, block=block)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            assert 0.015 < layer.weight.std() < 0.025
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.Conv2d) and layer is not module.similarity:
            assert layer.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1) and not layer.bias.any()
    signs = {bool(SpatialSelfAttention(4).similarity.weight > 0) for _ in range(20)}
    assert signs == {True, False}


@pytest.mark.parametrize("block", BLOCKS)
def test_query_and_key_of_all_layers_and_heads_have_a_graph(block):
    module = SpatialSelfAttention(6, 2, 3, block=block, dim_query=5, dim_value=4)
    out = module(torch.randn(2, 6, 4, 7))
    assert out.shape == (2, 6, 4, 7) and module.grid == (4, 7)
    assert module.query.shape == module.key.shape == (2, 6, 28, 5)
    assert module.similarity.weight.numel() == 6
    (module.query[:, 4:] * module.key[:, 4:]).sum().backward()  # the last layer's: all layers before feed it
    assert all(layer.attention.query.weight.grad.any() for layer in module.layers[::2])
    assert module.layers[2].attention.value.weight.grad is None


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 5)])
def test_small_and_strided_maps(block, grid):
    module = SpatialSelfAttention(4, block=block)
    features = torch.randn(2, *grid, 4).permute(0, 3, 1, 2)
    assert not features.is_contiguous() or grid == (1, 1)
    assert_close(module(features), module(features.contiguous()))


def test_bfloat16_stays_bfloat16():
    module = SpatialSelfAttention(8).bfloat16()
    assert module(torch.randn(1, 8, 3, 3).bfloat16()).dtype == module.query.dtype == torch.bfloat16


@pytest.mark.parametrize("block", BLOCKS)
def test_output_goes_to_all_readers_and_input_to_one(image, block):
    torch.manual_seed(0)
    model = Tiny().eval()
    seen = {}
    model.head.register_forward_pre_hook(lambda _, inputs: seen.update(skip=inputs[0][:, :6], deep=inputs[0][:, 6:]))
    model(image)
    plain = dict(seen)
    for layer, where, skip_changes in (("first", "output", True), ("second", "input", False)):
        attachment = attach(model, layer, where=where, block=block)
        assert attachment.attention.channels == 6 and not attachment.attention.training
        model(image)
        assert attachment.attention.grid == (8, 12)
        assert torch.equal(seen["skip"], plain["skip"]) != skip_changes
        assert not torch.equal(seen["deep"], plain["deep"])
        attachment.detach()
    model(image)
    assert all(torch.equal(seen[name], plain[name]) for name in plain)


def test_beside_the_features_nothing_changes_but_query_and_key_appear(image):
    model = Tiny().eval()
    before = model(image)
    attention = attach(model, "first", separate=True).attention
    assert torch.equal(model(image), before)
    attention.query.sum().backward()
    assert model.get_submodule("first.layer.0").weight.grad.any()


def test_detach_restores_names_and_weights(image):
    model = Tiny()
    before = names_and_values(model)
    attachment = attach(model, "second")
    assert attachment.attention.channels == 8 and isinstance(model.second, AttendedLayer)
    assert set(names_and_values(model)) != set(before)
    attachment.detach()
    assert_close(names_and_values(model), before)
    with pytest.raises(ValueError, match="layer_name: found another module at 'second', expected this"):
        attachment.detach()


def test_state_dict_round_trip_in_a_sequential(image):
    def make(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        attach(model, "1", channels=4, heads=2, layers=2)
        return model

    one, other = make(0), make(1)
    assert not torch.equal(one(image), other(image))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(image), other(image))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_leave_the_graph_behind(image, clone):
    model = Tiny().eval()
    attention = attach(model, "first").attention
    out = model(image)
    twin = clone(model)
    assert twin.first.attention.query is None and attention.query is not None
    assert torch.equal(twin(image), out) and twin.first.attention is not attention


def test_attention_takes_dtype_and_mode_of_the_layer(image):
    model = Tiny().double().eval()
    attention = attach(model, "first").attention
    assert attention.similarity.weight.dtype == torch.float64 and not model.first.training
    assert model(image.double()).dtype == torch.float64


def test_frozen_parts_of_a_layer_stay_frozen():
    model = Tiny()
    model.first[1].eval()
    attention = attach(model, "first").attention
    assert model.first.training and attention.training and not model.first.layer[1].training


def test_width_is_read_at_the_attended_side():
    network = lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU()))
    assert attach(network(), "0").attention.channels == 6
    assert attach(network(), "0", where="input").attention.channels == 1
    assert attach(network(), "0.3", channels=6).attention.channels == 6


@pytest.mark.parametrize("name,near", [("encoder2", "'encoder.2'"), ("", "of UNet2d"), ("encoder.9", "'encoder.")])
def test_unknown_layer_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"layer_name: found '{name}', expected a layer of UNet2d") as caught:
        attach(UNet2d(1, 2), name)
    assert near in str(caught.value)


def test_wrong_places_are_named(image):
    model = Tiny()
    with pytest.raises(ValueError, match="channels: found no width in 'grow', a Upsample, expected it as channels="):
        attach(model, "grow")
    with pytest.raises(ValueError, match="where: found 'outputs', expected one of output, input; did you mean 'output"):
        attach(model, "first", where="outputs")
    attach(model, "first")
    with pytest.raises(ValueError, match="layer_name: found spatial self-attention at 'first' already"):
        attach(model, "first")
    attach(model, "flat", channels=6)
    with pytest.raises(TypeError, match=r"output of layer 'flat': found \[2, 6\], expected a tensor \[N,d,h,w\]"):
        model(image)


def test_layer_that_gives_a_tuple_and_width_that_does_not_fit(image):
    class Pair(nn.Module):
        def forward(self, image):
            return image, image

    model = nn.Sequential(Pair())
    attach(model, "0", channels=1)
    with pytest.raises(TypeError, match="output of layer '0': found tuple, expected a tensor"):
        model(image)
    model = nn.Sequential(nn.Conv2d(1, 4, 1))
    attach(model, "0", channels=3)
    with pytest.raises(ValueError, match=r"features: found \[2, 4, 8, 12\], expected \[N,3,h,w\]"):
        model(image)


@pytest.mark.parametrize("options,message", [
    ({"block": "papers"}, "block: found 'papers'.*did you mean 'paper'"),
    ({"heads": 0}, "heads: found 0, expected a whole number"),
    ({"heads": 9}, "dim_query: found 0"),
    ({"layers": 1.5}, "layers: found 1.5"),
    ({"dim_value": -1}, "dim_value: found -1"),
    ({"mlp_ratio": 0}, "mlp_ratio: found 0"),
])
def test_unusable_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialSelfAttention(8, **options)


@pytest.mark.parametrize("code", [
    "import attenscribble.method.network",
    "import torch, attenscribble.method.ssa as s; s.SpatialSelfAttention(4)(torch.rand(1, 4, 3, 3)).sum().backward()",
])
def test_a_network_loads_neither_compiler_nor_plots(code):
    code = f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.fixture
def graphs():
    "Functions in all graphs that a backend for `torch.compile` is given; the backend itself."
    seen = []

    def backend(graph, inputs):
        seen.append([str(node.target) for part in graph.modules() if isinstance(part, torch.fx.GraphModule)
                     for node in part.graph.nodes if node.op.startswith("call")])
        return graph.forward

    torch._dynamo.reset()
    yield seen, backend
    torch._dynamo.reset()


def with_gradients(model, image):
    "Logits, the kept log-sum-exp, and the gradients of all weights that have one."
    model.zero_grad()
    logits, attention = model(image), model.get_submodule("first").attention
    (logits.square().sum() + attention.log_sum.sin().sum() + (attention.query * attention.key).sum()).backward()
    return logits, attention.log_sum, [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_compiled_network_leaves_attention_out_of_its_graphs(image, graphs, block):
    seen, backend = graphs
    torch.manual_seed(0)
    model = Tiny().eval()
    attach(model, "first", block=block, heads=2)
    plain = with_gradients(model, image)
    compiled = torch.compile(model, backend=backend)
    assert_close(with_gradients(compiled, image), plain)
    assert len(seen) > 1 and any("conv" in name for names in seen for name in names)
    wrong = [name for names in seen for name in names if "attention" in name or "autograd_function" in name]
    assert not wrong


def test_compiled_attention_stays_out_after_more_shapes_than_the_compiler_keeps(graphs):
    seen, backend = graphs

    def around(query, key, value):
        attended, log_sum = attend(query.sin(), key, value)
        return attended.cos(), log_sum.cos()

    compiled = torch.compile(around, backend=backend, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for places in range(3, 9):
            arrays = torch.randn(3, 1, 2, places, 4).unbind()
            assert_close(compiled(*arrays), around(*arrays))
    assert {name for names in seen for name in names} <= {"sin", "cos"} and seen


def test_a_row_of_attention_is_drawn_with_its_cell():
    row = torch.rand(12, dtype=torch.bfloat16, requires_grad=True) + 0
    row[3] = float("nan")
    picture = plot_attention(Figure().subplots(), row, (3, 4), 6, limits=(0, 2), title="a cell")
    assert_close(torch.tensor(picture.get_array().filled(-1)), row.detach().float().nan_to_num(-1).view(3, 4))
    assert picture.get_clim() == (0, 2) and picture.axes.get_title() == "a cell"
    assert picture.to_rgba(picture.get_array())[0, 3].tolist() == [0.85, 0.85, 0.85, 1]  # NaN is gray
    (cross,) = picture.axes.lines
    assert cross.get_xydata().tolist() == [[2, 1]]
    assert picture.axes.get_xlim() == (-0.5, 3.5) and picture.axes.get_ylim() == (2.5, -0.5)
