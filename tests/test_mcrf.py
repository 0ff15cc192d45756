"""The masked CRF loss against equations written out, and its properties."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from attenscribble.basics.checking import assert_same
from attenscribble.basics.native import native
from attenscribble.method import mcrf
from attenscribble.method.mcrf import Affinity, affinity_map, masked_crf_loss


def scene(shape=(2, 3, 7, 6), modalities=1, seed=0, labelled=0.3, dtype=torch.float64):
    "Random probabilities [N,C,H,W], image [N,K,H,W] and Ω_U [N,1,H,W]."
    draw = torch.Generator().manual_seed(seed)
    count, _, height, width = shape
    probs = torch.randn(shape, generator=draw, dtype=torch.float64).softmax(1).to(dtype)
    image = torch.rand((count, modalities, height, width), generator=draw, dtype=torch.float64).to(dtype)
    return probs, image, torch.rand((count, 1, height, width), generator=draw) >= labelled


def by_loops(probs, image, unlabelled, radius, sigma_xy, sigma_i):
    "Eqs. 4 and 5 with plain numbers: loops over image, p, q and both classes."
    images = []
    for P, intensity, free in zip(probs.tolist(), image.tolist(), unlabelled[:, 0].tolist(), strict=True):
        pixels = list(itertools.product(range(len(free)), range(len(free[0]))))
        total = 0.0
        for (y, x), (v, u) in itertools.product(pixels, pixels):
            if free[y][x] and free[v][u] and 0 < max(abs(y - v), abs(x - u)) <= radius:
                distance = ((y - v) ** 2 + (x - u) ** 2) / (2 * sigma_xy**2)
                distance += sum((m[y][x] - m[v][u]) ** 2 for m in intensity) / (2 * sigma_i**2)
                classes = itertools.permutations(range(len(P)), 2)
                total += math.exp(-distance) * sum(P[i][y][x] * P[j][v][u] for i, j in classes)
        images.append(total / max(1, sum(map(sum, free))))
    return sum(images) / len(images)


def assert_same_in_logits(fast, reference, probs):
    "Σ_{i≠j} and 1 − Σ_c have the same gradient only along probabilities that sum to 1: compare behind a softmax."
    assert_same(lambda z: fast(z.softmax(1)), lambda z: reference(z.softmax(1)), probs.log())


def by_matrix(probs, image, *, unlabelled=None, radius=5, sigma_xy=6.0, sigma_i=0.1, mask_neighbours=True, weight=1.0,
              denominator="image"):
    "The same sums as a dense matrix over all pairs of pixels; autograd finds the gradient."
    count, _, height, width = probs.shape
    free = torch.ones(count, height * width, dtype=probs.dtype)
    if unlabelled is not None:
        free = unlabelled.flatten(1).to(probs.dtype)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(probs.dtype)
    chebyshev = (place[:, None] - place[None]).abs().amax(-1)
    near = (chebyshev > 0) & (chebyshev <= radius)
    squared = lambda f: (f[..., :, None, :] - f[..., None, :, :]).square().sum(-1)
    intensity = image.flatten(2).transpose(1, 2)
    affinity = near * torch.exp(-squared(place) / (2 * sigma_xy**2) - squared(intensity) / (2 * sigma_i**2))
    pairs = free[:, :, None] * (free[:, None, :] if mask_neighbours else 1)
    rows = probs.flatten(2).transpose(1, 2)
    disagree = torch.einsum("npi,nqj,ij->npq", rows, rows, 1 - torch.eye(rows.shape[2], dtype=rows.dtype))
    energy = weight * (affinity * pairs * disagree).sum((1, 2))
    if denominator == "batch":
        return energy.sum() / free.sum().clamp(min=1)
    return (energy / free.sum(1).clamp(min=1)).mean()


def by_unfold(probs, image, unlabelled, radius, sigma_xy, sigma_i):
    "The released behaviour: features and probabilities unfolded with zeros, p masked, one denominator for the batch."
    count, _, height, width = probs.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack((x, y)).to(probs.dtype).expand(count, -1, -1, -1)
    features = torch.cat((place / sigma_xy, image / sigma_i), 1)
    window = lambda a: F.unfold(a, 2 * radius + 1, padding=radius).view(count, a.shape[1], -1, height, width)
    affinity = torch.exp(-0.5 * (window(features) - features[:, :, None]).square().sum(1))
    centre = torch.arange((2 * radius + 1) ** 2) == 2 * radius * (radius + 1)
    affinity = affinity * ~centre.view(1, -1, 1, 1) * unlabelled
    agree = (window(probs) * probs[:, :, None]).sum(1)
    return (affinity * (1 - agree)).sum() / unlabelled.sum().clamp(min=1)


@pytest.mark.parametrize("radius", [1, 2, 9])
@pytest.mark.parametrize("modalities", [1, 3])
def test_equals_the_equation_written_out(radius, modalities):
    probs, image, unlabelled = scene((2, 3, 5, 4), modalities)
    options = dict(unlabelled=unlabelled, radius=radius, sigma_xy=2.0, sigma_i=0.4)
    expected = torch.tensor(by_loops(probs, image, **options), dtype=torch.float64)
    assert_close(masked_crf_loss(probs, image, **options), expected)
    assert_close(masked_crf_loss(probs.requires_grad_(), image, **options).detach(), expected)


@pytest.mark.parametrize("options", [
    dict(),
    dict(radius=1),
    dict(radius=3, sigma_xy=1.5, sigma_i=0.5, weight=-0.7),
    dict(denominator="batch", weight=3.0),
    dict(mask_neighbours=False),
    dict(mask_neighbours=False, denominator="batch", radius=2, sigma_i=0.3),
    dict(sigma_xy=math.inf),
    dict(sigma_i=math.inf, radius=2),
], ids=str)
@pytest.mark.parametrize("modalities", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 8, 6), (1, 2, 3, 11)], ids=str)
def test_value_and_gradient_equal_the_dense_matrix(shape, modalities, options):
    probs, image, unlabelled = scene(shape, modalities, labelled=0.4)
    options = dict(options, unlabelled=unlabelled)
    assert_same_in_logits(lambda P: masked_crf_loss(P, image, **options),
                          lambda P: by_matrix(P, image, **options), probs)


@pytest.mark.parametrize("block", [1, 7, 50, 10**6])
@pytest.mark.parametrize("mask_neighbours", [True, False])
def test_blocks_leave_no_seam(monkeypatch, block, mask_neighbours):
    monkeypatch.setattr(mcrf, "_BLOCK", block)
    probs, image, unlabelled = scene()
    options = dict(unlabelled=unlabelled, radius=3, mask_neighbours=mask_neighbours)
    assert_same_in_logits(lambda P: masked_crf_loss(P, image, **options),
                          lambda P: by_matrix(P, image, **options), probs)


@pytest.fixture
def compiled():
    if native(mcrf._WALK, ROWS=mcrf._ROWS, CLASSES=2, MODALITIES=1) is None:
        pytest.skip("no C compiler, or ATTENSCRIBBLE_NATIVE=0")


@pytest.fixture
def in_pytorch(monkeypatch):
    monkeypatch.setenv("ATTENSCRIBBLE_NATIVE", "0")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mask_neighbours", [True, False])
@pytest.mark.parametrize("shape, radius", [((2, 4, 33, 17), 5), ((1, 2, 70, 5), 3), ((3, 3, 1, 40), 2),
                                           ((1, 5, 6, 16), 9)])
def test_c_equals_pytorch(shape, radius, mask_neighbours, threads):
    probs, image, unlabelled = scene(shape, modalities=2, dtype=torch.float32)
    kernel = Affinity(radius, 3.0, 0.3, mask_neighbours)
    used = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for layout in (torch.contiguous_format, torch.channels_last):
            arguments = probs.to(memory_format=layout), image.to(memory_format=layout), unlabelled, kernel, True
            energy, gradient = mcrf._walk_in_c(*arguments)
            expected, slope = mcrf._walk(*[a.double() if torch.is_tensor(a) and a.is_floating_point() else a
                                           for a in arguments])
            assert_close(energy.double(), expected, rtol=2e-6, atol=1e-6)
            assert_close(gradient.double(), slope, rtol=1e-5, atol=1e-6)
            assert gradient.stride() == arguments[0].stride()
    finally:
        torch.set_num_threads(used)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_bands_leave_no_seam(monkeypatch, rows):
    probs, image, unlabelled = scene((2, 3, 40, 18), dtype=torch.float32)
    arguments = probs, image, unlabelled, Affinity(3), True
    expected = mcrf._walk_in_c(*arguments)
    monkeypatch.setattr(mcrf, "_ROWS", rows)
    assert_close(mcrf._walk_in_c(*arguments), expected)


@pytest.mark.usefixtures("compiled")
def test_c_hands_on_what_is_no_number():
    probs, image, unlabelled = scene((1, 3, 9, 9), labelled=0, dtype=torch.float32)
    probs[0, 1, 4, 4] = torch.nan
    assert masked_crf_loss(probs, image, unlabelled=unlabelled).isnan()


@pytest.mark.usefixtures("compiled")
def test_c_is_used_for_float32_and_only_there(monkeypatch):
    walked = []
    walk = mcrf._walk
    monkeypatch.setattr(mcrf, "_walk", lambda probs, *rest: walked.append(probs.dtype) or walk(probs, *rest))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        probs, image, unlabelled = scene((1, 3, 9, 9), dtype=dtype)
        masked_crf_loss(probs, image, unlabelled=unlabelled)
    assert walked == [torch.float64, torch.bfloat16]


@pytest.mark.parametrize("radius", [1, 5])
@pytest.mark.parametrize("modalities", [1, 2])
def test_equals_the_released_unfold(radius, modalities):
    probs, image, unlabelled = scene((3, 4, 9, 12), modalities)
    options = dict(unlabelled=unlabelled, radius=radius, sigma_xy=3.0, sigma_i=0.3)
    released = dict(options, mask_neighbours=False, denominator="batch", count_padding=True)
    assert_same(lambda P: masked_crf_loss(P, image, **released), lambda P: by_unfold(P, image, **options), probs)
    without = masked_crf_loss(probs, image, **dict(released, count_padding=False))
    assert masked_crf_loss(probs, image, **released) > without + 1e-3


def test_padding_counts_once_for_each_neighbour_outside():
    # one dark pixel in the corner of the plane: all 8 neighbours lie outside, each at affinity 1
    probs, image = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert masked_crf_loss(probs, image, unlabelled=None, radius=1, count_padding=True) == 8
    assert masked_crf_loss(probs, image, unlabelled=None, radius=1) == 0


@pytest.mark.parametrize("mask_neighbours", [True, False])
@pytest.mark.parametrize("denominator", ["image", "batch"])
@pytest.mark.parametrize("count_padding", [True, False])
def test_gradcheck(mask_neighbours, denominator, count_padding):
    probs, image, unlabelled = scene((2, 3, 4, 5), modalities=2)
    options = dict(unlabelled=unlabelled, radius=2, sigma_i=0.5, mask_neighbours=mask_neighbours,
                   denominator=denominator, count_padding=count_padding)
    assert torch.autograd.gradcheck(lambda P: masked_crf_loss(P, image, **options), probs.requires_grad_())


def test_can_be_differentiated_once_and_only_in_probs():
    probs, image, unlabelled = scene()
    loss = masked_crf_loss(probs.requires_grad_(), image.requires_grad_(), unlabelled=unlabelled, count_padding=True)
    with pytest.raises(RuntimeError, match="masked_crf_loss: found create_graph=True, expected one derivative"):
        torch.autograd.grad(loss, probs, create_graph=True)
    loss.backward()
    assert probs.grad is not None and image.grad is None
    assert not masked_crf_loss(probs.detach(), image, unlabelled=unlabelled, count_padding=True).requires_grad


def test_gradient_is_linear_in_what_comes_from_above_and_survives_two_backwards():
    probs, image, unlabelled = scene()
    loss = masked_crf_loss(probs.requires_grad_(), image, unlabelled=unlabelled)
    (once,) = torch.autograd.grad(loss, probs, retain_graph=True)
    (threefold,) = torch.autograd.grad(3 * loss, probs, retain_graph=True)
    (again,) = torch.autograd.grad(loss, probs)
    assert_close(threefold, 3 * once)
    assert_close(again, once, rtol=0, atol=0)


def test_order_of_classes_and_batch_and_a_constant_in_the_image_do_not_matter():
    probs, image, unlabelled = scene((3, 4, 7, 6), modalities=2)
    loss = masked_crf_loss(probs, image, unlabelled=unlabelled)
    assert_close(masked_crf_loss(probs[:, [2, 0, 3, 1]], image, unlabelled=unlabelled), loss)
    order = [2, 0, 1]
    assert_close(masked_crf_loss(probs[order], image[order], unlabelled=unlabelled[order]), loss)
    brighter = image + torch.tensor([0.7, -3.0]).view(1, 2, 1, 1)
    assert_close(masked_crf_loss(probs, brighter, unlabelled=unlabelled), loss)
    for turned in (lambda a: a.flip(3), lambda a: a.flip(2), lambda a: a.transpose(2, 3), lambda a: a.rot90(1, (2, 3))):
        assert_close(masked_crf_loss(turned(probs), turned(image), unlabelled=turned(unlabelled)), loss)


@pytest.mark.parametrize("foreign", [0.5, math.nan])
def test_nothing_outside_omega_u_matters_when_neighbours_are_masked(foreign):
    probs, image, unlabelled = scene((3, 4, 7, 6))

    def value_and_slope(probs, image):
        probs = probs.detach().requires_grad_()
        loss = masked_crf_loss(probs, image, unlabelled=unlabelled)
        return loss.detach(), *torch.autograd.grad(loss, probs)

    loss, slope = value_and_slope(probs, image)
    changed = value_and_slope(probs.masked_fill(~unlabelled, foreign), image.masked_fill(~unlabelled, foreign))
    assert_close(changed, (loss, slope), rtol=0, atol=0)
    assert (slope.masked_select(~unlabelled) == 0).all() and (slope.masked_select(unlabelled) != 0).all()


def test_scribbles_pull_when_only_p_is_masked():
    probs, image, unlabelled = scene()
    swapped = torch.where(unlabelled, probs, probs.flip(1))
    both = [masked_crf_loss(P, image, unlabelled=unlabelled, mask_neighbours=False) for P in (probs, swapped)]
    assert (both[0] - both[1]).abs() > 1e-3


@pytest.mark.parametrize("mask_neighbours", [True, False])
@pytest.mark.parametrize("denominator", ["image", "batch"])
def test_no_unlabelled_pixel_is_zero_with_zero_gradient(mask_neighbours, denominator):
    probs, image, _ = scene()
    none = torch.zeros_like(image, dtype=torch.bool)
    loss = masked_crf_loss(probs.requires_grad_(), image, unlabelled=none, mask_neighbours=mask_neighbours,
                           denominator=denominator, count_padding=True)
    loss.backward()
    assert loss == 0 and (probs.grad == 0).all()


def test_an_image_without_unlabelled_pixels_adds_zero_to_the_mean_over_images():
    probs, image, unlabelled = scene()
    alone = masked_crf_loss(probs[:1], image[:1], unlabelled=unlabelled[:1])
    unlabelled[1] = False
    assert_close(masked_crf_loss(probs, image, unlabelled=unlabelled), alone / 2)
    assert_close(masked_crf_loss(probs, image, unlabelled=unlabelled, denominator="batch"), alone)


def test_the_two_denominators_differ_when_masks_differ_in_size():
    probs, image, unlabelled = scene()
    unlabelled[1, :, :4] = False
    each = torch.stack([masked_crf_loss(probs[i : i + 1], image[i : i + 1], unlabelled=unlabelled[i : i + 1])
                        for i in range(2)])
    size = unlabelled.sum((1, 2, 3))
    assert_close(masked_crf_loss(probs, image, unlabelled=unlabelled), each.mean())
    pooled = masked_crf_loss(probs, image, unlabelled=unlabelled, denominator="batch")
    assert_close(pooled, (each * size).sum() / size.sum())
    assert (pooled - each.mean()).abs() > 1e-3


def test_unlabelled_none_means_every_pixel():
    probs, image, _ = scene()
    everywhere = torch.ones_like(image, dtype=torch.bool)
    loss = masked_crf_loss(probs, image, unlabelled=None)
    assert_close(loss, masked_crf_loss(probs, image, unlabelled=everywhere), rtol=0, atol=0)
    assert loss > 0


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 1, 5), (2, 3, 5, 1), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("mask_neighbours", [True, False])
def test_window_larger_than_the_image(shape, mask_neighbours):
    probs, image, _ = scene(shape)
    options = dict(radius=40, mask_neighbours=mask_neighbours)
    assert_same_in_logits(lambda P: masked_crf_loss(P, image, unlabelled=None, **options),
                          lambda P: by_matrix(P, image, **options), probs)
    fitting = max(1, max(shape[2:]) - 1)
    assert_close(masked_crf_loss(probs, image, unlabelled=None, **options),
                 masked_crf_loss(probs, image, unlabelled=None, mask_neighbours=mask_neighbours, radius=fitting))


def test_an_empty_batch_gives_zero():
    loss = masked_crf_loss(torch.rand(0, 4, 8, 8, requires_grad=True), torch.rand(0, 1, 8, 8), unlabelled=None)
    loss.backward()
    assert loss == 0


def test_one_class_is_never_in_disagreement():
    _, image, unlabelled = scene()
    assert masked_crf_loss(torch.ones(2, 1, 7, 6).double(), image, unlabelled=unlabelled).abs() < 1e-12


def test_certain_agreement_costs_nothing_and_doubt_costs_by_the_number_of_classes():
    _, image, unlabelled = scene((1, 4, 7, 6))
    agree = torch.zeros(1, 4, 7, 6).double()
    agree[:, 2] = 1
    # undecided: 1 − Σ_c (1/C)² = 1 − 1/C for each pair, whatever its affinity
    undecided = [masked_crf_loss(torch.full((1, classes, 7, 6), 1 / classes).double(), image, unlabelled=unlabelled)
                 for classes in (2, 5)]
    assert_close(undecided[1] / undecided[0], torch.tensor(0.8 / 0.5, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("arrange", [
    lambda a: a.contiguous(memory_format=torch.channels_last),
    lambda a: torch.stack((a, a), -1)[..., 0],
    lambda a: a.transpose(2, 3).contiguous().transpose(2, 3),
    lambda a: a.flip(0).flip(0).expand(a.shape),
], ids=["channels_last", "every second", "transposed", "flipped"])
def test_strides_do_not_matter(arrange):
    probs, image, unlabelled = scene((2, 3, 8, 6))
    plain, strided = probs.clone().requires_grad_(), arrange(probs).detach().requires_grad_()
    expected = masked_crf_loss(plain, image, unlabelled=unlabelled)
    found = masked_crf_loss(strided, arrange(image), unlabelled=arrange(unlabelled))
    assert_close(found, expected, rtol=0, atol=0)
    assert_close(torch.autograd.grad(found, strided), torch.autograd.grad(expected, plain), rtol=0, atol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_lower_precision(dtype, tolerance):
    exact_probs, exact_image, unlabelled = scene((2, 4, 12, 10))
    probs, image = exact_probs.to(dtype).requires_grad_(), exact_image.to(dtype)
    loss = masked_crf_loss(probs, image, unlabelled=unlabelled)
    # the same rounded inputs in float64: what is left is the arithmetic, and the gradient's own type
    expected_probs = probs.detach().double().requires_grad_()
    expected = masked_crf_loss(expected_probs, image.double(), unlabelled=unlabelled)
    assert loss.dtype == torch.float32
    assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (slope,), (expected_slope,) = torch.autograd.grad(loss, probs), torch.autograd.grad(expected, expected_probs)
    assert slope.dtype == dtype
    assert_close(slope.double(), expected_slope, rtol=tolerance, atol=tolerance * expected_slope.abs().max())


def test_float32_stays_exact_where_predictions_are_confident():
    probs, image, unlabelled = scene((1, 4, 64, 64), dtype=torch.float32, labelled=0.01)
    probs = (12 * probs).softmax(1)
    probs[:, :, :, :40] = torch.tensor([1.0, 0, 0, 0]).view(1, 4, 1, 1)
    exact = masked_crf_loss(probs.double(), image.double(), unlabelled=unlabelled)
    assert_close(masked_crf_loss(probs, image, unlabelled=unlabelled).double(), exact, rtol=1e-5, atol=0)


def test_no_gradient_is_made_under_no_grad(monkeypatch):
    ways, gather = [], mcrf._gather
    monkeypatch.setattr(mcrf, "_gather", lambda *a: ways.append(a[-1]) or gather(*a))
    probs, image, unlabelled = scene()
    with torch.no_grad():
        masked_crf_loss(probs.requires_grad_(), image, unlabelled=unlabelled)
    masked_crf_loss(probs, image, unlabelled=unlabelled)
    assert ways == [False, True]


@pytest.mark.usefixtures("in_pytorch")
def test_memory_stays_far_below_an_unfolded_tensor():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, list | tuple) else [made]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
            return made

    probs, image, unlabelled = scene((2, 4, 48, 48), dtype=torch.float32)
    with Largest() as largest:
        masked_crf_loss(probs.requires_grad_(), image, unlabelled=unlabelled).backward()
    assert probs.numel() < largest.elements < 2 * probs.numel()


def test_nothing_waits_for_a_value():
    # on "meta" no tensor has a value: whatever asks for one (item, nonzero, a branch on data) raises
    probs = torch.rand(2, 4, 9, 8, device="meta", requires_grad=True)
    image, unlabelled = torch.rand(2, 2, 9, 8, device="meta"), torch.ones(2, 1, 9, 8, dtype=torch.bool, device="meta")
    for options in (dict(), dict(mask_neighbours=False, denominator="batch", count_padding=True)):
        masked_crf_loss(probs, image, unlabelled=unlabelled, **options).backward()
    assert probs.grad.shape == probs.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_without_waiting_for_the_host():
    probs, image, unlabelled = scene((3, 4, 40, 33), modalities=2, dtype=torch.float32)
    plain = probs.clone().requires_grad_()
    expected = masked_crf_loss(plain, image, unlabelled=unlabelled)
    expected.backward()
    probs, image, unlabelled = probs.cuda().requires_grad_(), image.cuda(), unlabelled.cuda()
    masked_crf_loss(probs.detach(), image, unlabelled=unlabelled)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = masked_crf_loss(probs, image, unlabelled=unlabelled)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(loss.cpu(), expected)
    assert_close(probs.grad.cpu(), plain.grad)


def test_affinity_map_is_a_row_of_the_kernel():
    # P certain of class 1 at p alone: the loss is the affinity of p to all its neighbours, from both ends
    _, image, unlabelled = scene((1, 2, 7, 6))
    unlabelled[0, 0, 3, 2] = True
    foreground = torch.zeros(1, 1, 7, 6, dtype=torch.float64)
    foreground[0, 0, 3, 2] = 1
    kernel = Affinity(radius=2, sigma_xy=3.0, sigma_i=0.2)
    row = affinity_map(image[0, 0].numpy(), (3, 2), kernel, unlabelled[0, 0].numpy())
    loss = masked_crf_loss(torch.cat((1 - foreground, foreground), 1), image, unlabelled=unlabelled, radius=2,
                           sigma_xy=3.0, sigma_i=0.2)
    assert_close(loss.item() * unlabelled.sum().item(), 2 * float(np.nansum(row)))
    assert np.isnan(row[3, 2]) and np.isnan(row[0]).all() and (np.isnan(row) | unlabelled[0, 0].numpy()).all()


def test_half_window_and_its_mirror_make_the_window():
    half = mcrf._half_window(2, 9, 9)
    window = set(itertools.product(range(-2, 3), repeat=2)) - {(0, 0)}
    assert len(half) == 12 and {*half, *((-dy, -dx) for dy, dx in half)} == window
    assert mcrf._half_window(5, 1, 1) == [] and mcrf._half_window(5, 1, 3) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("change, error, message", [
    (dict(probs=torch.rand(3, 7, 6)), ValueError, r"probs: found \[3, 7, 6\]"),
    (dict(probs=torch.ones(2, 3, 7, 6).long()), TypeError, "probs: found dtype torch.int64, expected floats"),
    (dict(image=torch.rand(2, 1, 7, 5)), ValueError, r"image: found \[2, 1, 7, 5\], expected \[2,K,7,6\]"),
    (dict(image=torch.rand(2, 7, 6)), ValueError, r"image: found \[2, 7, 6\]"),
    (dict(unlabelled=torch.ones(2, 7, 6, dtype=torch.bool)), ValueError, r"unlabelled: found .* expected \[2,1,7,6\]"),
    (dict(unlabelled=torch.ones(2, 1, 7, 6)), TypeError, "unlabelled: found torch.float32, expected torch.bool"),
    (dict(radius=0), ValueError, "radius: found 0"),
    (dict(radius=2.5), ValueError, "radius: found 2.5"),
    (dict(sigma_xy=0), ValueError, "sigma_xy: found 0"),
    (dict(sigma_i=-0.1), ValueError, "sigma_i: found -0.1"),
    (dict(sigma_i=math.nan), ValueError, "sigma_i: found nan"),
    (dict(denominator="pixel"), ValueError, "denominator: found 'pixel', expected 'image' or 'batch'"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_errors_name_the_argument(change, error, message):
    probs, image, unlabelled = scene()
    arguments = dict(probs=probs, image=image, unlabelled=unlabelled) | change
    with pytest.raises(error, match=message):
        masked_crf_loss(arguments.pop("probs"), arguments.pop("image"), **arguments)
