"""The U-Net: the released architecture, what it accepts, what it refuses; receptive fields against known kernels."""

import copy

import pytest
import torch
import torch._dynamo
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

from attenscribble.method.network import (
    Dropout,
    UNet2d,
    UpStage,
    drop,
    field_square,
    field_width,
    plot_field,
    receptive_fields,
)

CHANNELS = (16, 32, 64, 128, 256)


def tiny(**options) -> UNet2d:
    torch.manual_seed(0)
    return UNet2d(1, 3, **{"channels": (2, 3, 4), "dropout": (0, 0, 0)} | options)


def released_layers(classes: int) -> list[nn.Module]:
    "All layers that hold weights, in the order in which the released network creates them."
    layers: list[nn.Module] = []

    def block(source: int, width: int) -> None:
        layers.extend([nn.Conv2d(source, width, 3), nn.BatchNorm2d(width)])
        layers.extend([nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)])

    for source, width in zip((1, *CHANNELS), CHANNELS, strict=False):
        block(source, width)
    for below, width in ((256, 128), (128, 64), (64, 32), (32, 16)):
        layers.append(nn.Conv2d(below, width, 1))
        block(2 * width, width)
    return [*layers, nn.Conv2d(16, classes, 3)]


@pytest.mark.parametrize(("classes", "count"), [(4, 1_813_764), (5, 1_813_909)])
def test_same_weights_as_the_released_network_for_the_same_seed(classes, count):
    torch.manual_seed(7)
    expected = [weight for layer in released_layers(classes) for weight in layer.parameters()]
    torch.manual_seed(7)
    found = list(UNet2d(1, classes).parameters())
    assert sum(weight.numel() for weight in found) == count
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_every_stage_has_the_layers_of_the_paper_s_network():
    model = UNet2d(1, 4)
    block = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    for i, (stage, p) in enumerate(zip(model.encoder, (0.05, 0.1, 0.2, 0.3, 0.5), strict=True)):
        assert [type(layer) for layer in stage] == [nn.MaxPool2d] * (i > 0) + block + [Dropout] + block
        assert stage[-4].p == p and {stage[-1].negative_slope, stage[-5].negative_slope} == {0.01}
    assert len(model.decoder) == 4
    assert not any(isinstance(layer, nn.Dropout) for layer in model.decoder.modules())
    assert all(stage.grow.mode == "bilinear" and stage.grow.align_corners for stage in model.decoder)


@pytest.mark.parametrize(("options", "shape"), [
    ({}, (2, 1, 8, 12)),
    ({}, (1, 1, 4, 4)),
    ({"channels": (5,), "dropout": (0.5,)}, (1, 1, 7, 3)),
    ({"channels": [4, 2], "dropout": [0, 0]}, (3, 1, 2, 6)),
])
def test_logits_have_the_image_s_sides(options, shape):
    assert tiny(**options).eval()(torch.rand(shape)).shape == (shape[0], 3, *shape[2:])


def test_more_image_channels():
    assert UNet2d(3, 2, channels=(2, 2), dropout=(0, 0))(torch.rand(2, 3, 8, 8)).shape == (2, 2, 8, 8)


def test_an_image_does_not_depend_on_its_batch_in_evaluation_mode():
    model, images = tiny().eval(), torch.rand(3, 1, 16, 16)
    assert_close(model(images)[1:2], model(images[1:2]))


def test_every_weight_learns():
    model = tiny()
    model(torch.rand(2, 1, 16, 16)).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert all(stage[-3].weight.grad.abs().sum() > 0 for stage in model.encoder)


def test_dropout_only_in_training():
    model, image = tiny(dropout=(0.5, 0.5, 0.5)), torch.rand(1, 1, 16, 16)
    assert not model(image).equal(model(image))
    model.eval()
    assert model(image).equal(model(image))


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_layout_changes_nothing(layout):
    model, wide = tiny().eval(), torch.rand(2, 1, 16, 32)
    if layout == "channels_last":
        image, other = wide, copy.deepcopy(model).to(memory_format=torch.channels_last)
        changed = other(wide.contiguous(memory_format=torch.channels_last))
        assert changed.is_contiguous(memory_format=torch.channels_last)
    else:
        image, changed = wide[..., ::2].contiguous(), model(wide[..., ::2])
    assert_close(changed, model(image))


def test_half_precision_keeps_its_dtype_and_stays_near():
    model, image = tiny(), torch.rand(2, 1, 16, 16)
    model(image)
    model.eval()
    exact = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(image)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.float(), exact, rtol=0.1, atol=0.05)
    assert model.double()(image.double()).dtype == torch.float64


def test_a_replaced_stage_reaches_the_next_stage_and_the_decoder():
    model, image, seen = tiny().eval(), torch.rand(1, 1, 16, 16), {}
    model.get_submodule("encoder.1").register_forward_hook(lambda module, inputs, output: output + 100)
    model.encoder[2].register_forward_pre_hook(lambda module, inputs: seen.update(down=inputs[0]))
    model.decoder[0].register_forward_pre_hook(lambda module, inputs: seen.update(skip=inputs[1]))
    model(image)
    assert seen["down"].min() > 50 and seen["skip"] is seen["down"]


def test_a_step_up_sets_the_skip_before_what_comes_from_below():
    step, seen = UpStage(4, 2).eval(), {}
    step.convolutions.register_forward_pre_hook(lambda module, inputs: seen.update(joined=inputs[0]))
    skip = torch.rand(1, 2, 4, 6)
    step(torch.rand(1, 4, 2, 3), skip)
    assert seen["joined"].shape == (1, 4, 4, 6) and seen["joined"][:, :2].equal(skip)


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 1, 20, 32), "height 20, expected a multiple of 16; the next one is 32"),
    ((1, 1, 32, 33), "width 33, expected a multiple of 16; the next one is 48"),
    ((1, 1, 0, 16), "height 0, expected a multiple of 16; the next one is 16"),
    ((1, 3, 32, 32), r"shape \(1, 3, 32, 32\), expected \[N,1,H,W\]"),
    ((1, 32, 32), r"shape \(1, 32, 32\), expected \[N,1,H,W\]"),
])
def test_an_image_that_does_not_fit_is_named(shape, message):
    with pytest.raises(ValueError, match=f"image: found {message}"):
        UNet2d(1, 4)(torch.zeros(shape))


def test_an_integer_image_is_named():
    with pytest.raises(TypeError, match=r"image: found dtype torch\.uint8, expected floats"):
        tiny()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(("options", "message"), [
    ({"in_channels": 0}, "in_channels: found 0"),
    ({"classes": 2.0}, r"classes: found 2\.0"),
    ({"channels": ()}, r"channels: found \(\)"),
    ({"channels": (4, 0), "dropout": (0, 0)}, r"channels: found \(4, 0\)"),
    ({"channels": (4, 8)}, "expected 2 numbers in"),
    ({"dropout": (0, 0, 0, 0, 1)}, r"dropout: found \(0, 0, 0, 0, 1\), expected 5 numbers in \[0, 1\)"),
])
def test_unusable_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        UNet2d(**{"in_channels": 1, "classes": 4} | options)


def test_the_field_of_a_convolution_is_its_kernel():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).eval()
    image = torch.rand(2, 1, 9, 9)
    field = receptive_fields(model, image, ["0"])["0"]
    kernel = model[0].weight[0, 0].detach().abs()
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = kernel / kernel.sum()  # correlation: no flip
    assert_close(field, expected)
    assert model[0].weight.grad is None and not image.requires_grad


def test_fields_leave_no_hook_behind_even_when_the_model_fails():
    model = tiny().eval()
    with pytest.raises(ValueError, match="width 9"):
        receptive_fields(model, torch.rand(1, 1, 8, 9), ["encoder.1"])
    receptive_fields(model, torch.rand(1, 1, 8, 8), ["encoder.1"])
    assert not any(layer._forward_hooks for layer in model.modules())


def test_fields_refuse_training_mode_and_unknown_layers():
    with pytest.raises(ValueError, match=r"model: found training mode, .* expected model\.eval\(\)"):
        receptive_fields(tiny(), torch.rand(1, 1, 8, 8), ["head"])
    with pytest.raises(AttributeError, match="has no attribute `9`"):
        receptive_fields(tiny().eval(), torch.rand(1, 1, 8, 8), ["encoder.9"])


def test_the_square_follows_the_field():
    field = torch.zeros(20, 30)
    field[4:9, 12:17] = 1
    assert field_square(field, 1) == pytest.approx((6, 14, 2.5))
    assert field_square(7 * field.roll((3, -2), (0, 1)), 1) == pytest.approx((9, 12, 2.5))
    assert [field_width(field, share) for share in (0.03, 0.35, 0.4)] == pytest.approx([1, 3, 5])


def test_a_field_is_drawn_relative_to_its_peak_on_five_decades():
    field = torch.zeros(8, 8)
    field[2, 3], field[2, 4], field[2, 5] = 4, 4e-2, 4e-7
    picture = plot_field(Figure().subplots(), field, share=0.9, title="a stage")
    colours, viridis = picture.to_rgba(picture.get_array()), colormaps["viridis"]
    assert_close(torch.tensor(colours[2, 3]), torch.tensor(viridis(1.0)))
    assert_close(torch.tensor(colours[2, 4]), torch.tensor(viridis(0.6)))  # two of five decades below
    assert_close(torch.tensor(colours[2, 5]), torch.tensor(viridis(0.0)))  # less than the scale shows
    assert_close(torch.tensor(colours[0, 0]), torch.tensor([0.0, 0.0, 0.0, 1.0]).double())  # no influence is black
    (square,) = picture.axes.patches
    assert square.get_width() == field_width(field, 0.9) and picture.axes.get_title() == "a stage"


@pytest.mark.parametrize("channels", [False, True])
def test_drop_keeps_the_mean_and_draws_afresh(channels):
    torch.manual_seed(0)
    ones = torch.ones(64, 32, 8, 6).to(memory_format=torch.channels_last)
    found, again = (drop(ones, 0.3, channels=channels) for _ in range(2))
    assert found.is_contiguous(memory_format=torch.channels_last) and found.unique().numel() == 2
    assert abs((found == 0).float().mean() - 0.3) < (0.05 if channels else 0.005) and not torch.equal(found, again)
    assert_close(found.max(), torch.tensor(1 / 0.7), rtol=1e-4, atol=0)
    shares = (found == 0).float().mean((2, 3))
    assert (shares.unique().numel() == 2) is channels
    torch.manual_seed(0)
    assert torch.equal(drop(ones, 0.3, channels=channels), found)


def test_a_compiled_network_trains_with_the_same_noise():
    model, found = tiny(channels=(2, 3), dropout=(0.1, 0.3)).double(), []
    image = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    torch._dynamo.reset()
    for form in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        torch.manual_seed(0)
        logits = form(image)
        logits.square().sum().backward()
        found.append((logits, [weight.grad for weight in model.parameters()]))
    torch._dynamo.reset()
    assert_close(found[1], found[0])


def test_drop_has_the_gradient_of_what_it_kept():
    features = torch.rand(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    found = drop(features, 0.5)
    found.sum().backward()
    assert torch.equal(features.grad, 2.0 * (found != 0))
