"""The attentive similarity loss against eq. 6 written out and against dense matrices, and its properties."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from attenscribble.basics import native
from attenscribble.basics.checking import assert_same
from attenscribble.method import asl, ssa
from attenscribble.method.asl import annotated_cells, attentive_similarity_loss
from attenscribble.method.ssa import CHUNK, SpatialSelfAttention, attention_maps, row_log_sum


def scene(count=2, layers=2, grid=(4, 5), size=(8, 10), dim=3, classes=3, seed=0):
    "Random logits of P, query, key, weight, bias in float64, and Ω_U."
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)
    tokens = (count, layers, grid[0] * grid[1], dim)
    inputs = normal(count, classes, *size), 2 * normal(*tokens), normal(*tokens), 2 * normal(1, layers, 1, 1), normal(1)
    return inputs, torch.rand(count, 1, *size, generator=draw) < 0.9


def by_loops(P, A, weight, bias, free, grid, radius, sigma_xy):
    "Eq. 6 of one image with plain numbers: P [C][hw], A [nL][hw][hw]; sums over p, q and both classes."
    total = 0.0
    for p, q in itertools.product(range(len(free)), repeat=2):
        dy, dx = p // grid[1] - q // grid[1], p % grid[1] - q % grid[1]
        if free[p] and free[q] and 0 < max(abs(dy), abs(dx)) <= radius:
            mixed = sum(w * (a[p][q] + a[q][p]) for w, a in zip(weight, A, strict=True)) + bias
            different = sum(P[i][p] * P[j][q] for i, j in itertools.permutations(range(len(P)), 2))
            total += math.exp(-(dy**2 + dx**2) / (2 * sigma_xy**2)) / (1 + math.exp(-mixed)) * different
    return total / max(1, sum(free))


def dense(probs, query, key, weight, bias, *, radius=5, sigma_xy=6.0, unlabelled=None, grid, logit_scale="sqrt_dk",
          similarity_scale=1.0, denominator="omega_u", resize="bilinear", keep=None):
    "Eq. 6 as hw×hw matrices; autograd finds the gradients."
    cells = grid[0] * grid[1]
    A = attention_maps(query, key, query.shape[3] ** -0.5 if logit_scale == "sqrt_dk" else 1)
    mixed = weight.view(-1, 1, 1) * (A + A.transpose(2, 3)) * (cells if similarity_scale == "hw" else similarity_scale)
    S = torch.sigmoid(mixed.sum(1) + bias)
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    step = (place[:, None] - place).to(probs)
    reach = step.abs().amax(-1)
    M = torch.exp(-step.square().sum(-1) / (2 * sigma_xy**2)) * (reach > 0) * (reach <= radius)
    corners = {"align_corners": False} if resize == "bilinear" else {}
    P = F.interpolate(probs, grid, mode=resize, **corners).flatten(2)
    free = torch.ones(len(probs), cells, dtype=torch.bool)
    if unlabelled is not None:
        free = F.adaptive_avg_pool2d((~unlabelled).double(), grid).flatten(1) == 0
    if keep is not None:
        free = free & keep[:, None]
    pairs = free[:, :, None] & free[:, None]
    energy = (M * S * (1 - P.transpose(1, 2) @ P) * pairs).sum((1, 2))
    return (energy / (free.sum(1).clamp(min=1) if denominator == "omega_u" else cells)).mean()


def assert_equals_dense(inputs, **options):
    assert_same(lambda z, *rest: attentive_similarity_loss(z.softmax(1), *rest, **options),
                lambda z, *rest: dense(z.softmax(1), *rest, **options), *inputs)


def gradients(inputs, loss):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)


def test_value_is_that_of_the_loops():
    inputs, unlabelled = scene(size=(4, 5))
    probs, query, key, weight, bias = inputs[0].softmax(1), *inputs[1:]
    found = attentive_similarity_loss(probs, query, key, weight, bias, radius=2, sigma_xy=1.5, unlabelled=unlabelled)
    A = attention_maps(query, key, 3**-0.5)
    plain = lambda tensor: tensor.flatten().tolist()
    images = [by_loops(P.flatten(1).tolist(), a.tolist(), plain(weight), bias.item(), plain(free), (4, 5), 2, 1.5)
              for P, a, free in zip(probs, A, unlabelled, strict=True)]
    assert found.item() == pytest.approx(sum(images) / 2)


@pytest.mark.parametrize("resize", ["bilinear", "area", "nearest"])
@pytest.mark.parametrize("logit_scale", ["sqrt_dk", "none"])
@pytest.mark.parametrize("denominator", ["omega_u", "grid"])
@pytest.mark.parametrize("similarity_scale", [1.0, 3.5, "hw"])
def test_all_options_equal_dense_matrices(resize, logit_scale, denominator, similarity_scale):
    inputs, unlabelled = scene()
    for mask, keep, radius in ((None, None, 1), (unlabelled, torch.tensor([True, False]), 2), (unlabelled, None, 9)):
        assert_equals_dense(inputs, resize=resize, logit_scale=logit_scale, denominator=denominator, sigma_xy=2.0,
                            similarity_scale=similarity_scale, unlabelled=mask, keep=keep, radius=radius, grid=(4, 5))


@pytest.mark.parametrize("grid,size", [((1, 1), (4, 4)), ((1, 6), (2, 12)), ((7, 1), (7, 1)), ((3, 5), (10, 11)),
                                       ((6, 6), (3, 3))])
def test_grids_of_all_shapes(grid, size):
    inputs, unlabelled = scene(count=1, layers=3, grid=grid, size=size)
    assert_equals_dense(inputs, unlabelled=unlabelled, radius=2, sigma_xy=2.0, grid=grid)


@pytest.mark.parametrize("chunk", [1, 7, 45, 399, 401, 10_000])
def test_chunks_do_not_show(monkeypatch, chunk):
    monkeypatch.setitem(CHUNK, "cpu", chunk)  # less than a row, rows, all of them
    inputs, unlabelled = scene(count=3)
    assert_equals_dense(inputs, unlabelled=unlabelled, radius=2, grid=(4, 5))


@pytest.fixture
def without_kernels(monkeypatch):
    "What a device without fused attention or compiler does."
    monkeypatch.setattr(ssa, "_kernel_works", lambda *_: False)
    monkeypatch.setenv("ATTENSCRIBBLE_NATIVE", "0")


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("chunk", [1, 45, 10_000])
def test_any_device_finds_the_same(monkeypatch, chunk):
    monkeypatch.setitem(CHUNK, "cpu", chunk)
    inputs, unlabelled = scene(count=3)
    assert SpatialSelfAttention(8)(torch.rand(1, 8, 4, 5)).shape == (1, 8, 4, 5)
    assert_equals_dense(inputs, unlabelled=unlabelled, radius=2, grid=(4, 5))


@pytest.mark.parametrize("options", [
    dict(), dict(radius=1, sigma_xy=math.inf), dict(radius=9, sigma_xy=2.0), dict(keep=torch.tensor([True, False])),
    dict(similarity_scale="hw", logit_scale="none")], ids=str)
@pytest.mark.parametrize("grid, layers, dim", [((4, 5), 2, 3), ((7, 9), 1, 16), ((1, 20), 3, 40)], ids=str)
def test_c_equals_float64(options, grid, layers, dim):
    if asl._compiled(3, layers, dim, 1) is None:
        pytest.skip("no C compiler, or ATTENSCRIBBLE_NATIVE=0")
    inputs, unlabelled = scene(layers=layers, grid=grid, dim=dim, size=(2 * grid[0], 2 * grid[1]))
    options = dict(options, unlabelled=unlabelled, grid=grid)
    assert_close(all_results(torch.float32, inputs, options), all_results(torch.float64, inputs, options),
                 rtol=1e-4, atol=1e-5)


def all_results(dtype, inputs, options):
    "Value, gradients and notes, computed in one dtype."
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    loss, notes = attentive_similarity_loss(leaves[0].softmax(1), *leaves[1:], return_stats=True, **options)
    return [x.double() for x in (loss.detach(), *torch.autograd.grad(loss, leaves), *notes.values())]


@pytest.fixture
def narrow_vectors(monkeypatch):
    "C for vectors of eight numbers."
    for module in (native, asl):
        monkeypatch.setattr(module, "LANES", 8)
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@pytest.mark.usefixtures("narrow_vectors")
def test_rows_are_padded_to_the_vectors_that_c_is_compiled_for():
    if asl._compiled(3, 2, 3, 2) is None:
        pytest.skip("no C compiler, or ATTENSCRIBBLE_NATIVE=0")
    inputs, unlabelled = scene()
    options = dict(radius=2, unlabelled=unlabelled)
    assert_close(all_results(torch.float32, inputs, options), all_results(torch.float64, inputs, options),
                 rtol=1e-4, atol=1e-5)


def test_a_given_log_sum_is_used_and_gets_a_gradient():
    inputs, unlabelled = scene()
    leaves = [x.requires_grad_() for x in inputs]
    given = row_log_sum(leaves[1], leaves[2], leaves[1].shape[3] ** -0.5)
    alone = attentive_similarity_loss(*leaves, unlabelled=unlabelled)
    shared = attentive_similarity_loss(*leaves, unlabelled=unlabelled, log_sum=given)
    assert_close(alone, shared)
    assert torch.autograd.grad(shared, given, retain_graph=True)[0].abs().max() > 0
    other = attentive_similarity_loss(*leaves, unlabelled=unlabelled, log_sum=given + 1)
    assert abs(other - alone) > 0.1
    slopes = torch.autograd.grad(alone, leaves, retain_graph=True)
    assert_close(slopes, torch.autograd.grad(shared, leaves))
    with pytest.raises(ValueError, match=r"log_sum: found \[2, 2, 20\] with logit_scale='none'"):
        attentive_similarity_loss(*leaves, log_sum=given, logit_scale="none")


def test_gradcheck():
    inputs, unlabelled = scene(count=1, grid=(3, 3), size=(3, 3))
    leaves = [x.requires_grad_() for x in inputs]
    torch.autograd.gradcheck(lambda *x: attentive_similarity_loss(*x, radius=1, unlabelled=unlabelled), leaves)


def test_second_derivative_is_refused():
    inputs, _ = scene(count=1)
    query = inputs[1].requires_grad_()
    loss = attentive_similarity_loss(inputs[0].softmax(1), query, *inputs[2:])
    (slope,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("denominator", ["omega_u", "grid"])
def test_nothing_unlabelled_or_nothing_kept_is_zero_with_zero_slopes(denominator):
    inputs, unlabelled = scene()
    for options in ({"unlabelled": unlabelled & False}, {"keep": torch.zeros(2, dtype=torch.bool)}):
        loss = lambda *x, options=options: attentive_similarity_loss(*x, denominator=denominator, **options)
        assert loss(*inputs) == 0
        assert all(slope is not None and not slope.any() for slope in gradients(inputs, loss))


def test_dropped_image_adds_nothing_but_counts():
    inputs, _ = scene()
    keep = torch.tensor([False, True])
    loss = lambda *x: attentive_similarity_loss(*x, denominator="grid", keep=keep)
    second = [x[1:] for x in inputs[:3]]
    assert_close(loss(*inputs), attentive_similarity_loss(*second, *inputs[3:], denominator="grid") / 2)
    for slope in gradients(inputs, loss)[:3]:
        assert not slope[0].any() and slope[1].any()


def test_annotated_cells_take_no_part():
    (logits, *rest), _ = scene(grid=(4, 5), size=(4, 5))
    unlabelled = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    unlabelled[:, :, 1, 2] = False
    probs, other = logits.softmax(1), logits.clone()
    other[:, :, 1, 2] = other[:, [1, 2, 0], 1, 2]
    loss = lambda *x: attentive_similarity_loss(*x, radius=2, unlabelled=unlabelled)
    assert_close(loss(other.softmax(1), *rest), loss(probs, *rest), rtol=0, atol=0)
    assert not gradients((probs, *rest), loss)[0][:, :, 1, 2].any()


def test_cell_is_annotated_as_soon_as_one_pixel_is():
    unlabelled = torch.ones(1, 1, 8, 12, dtype=torch.bool)
    unlabelled[0, 0, 3, 4] = False
    assert annotated_cells(unlabelled, (2, 3)).nonzero().tolist() == [[0, 1]]
    assert annotated_cells(unlabelled, (3, 3)).nonzero().tolist() == [[0, 4]]
    assert annotated_cells(unlabelled, (5, 12)).nonzero().tolist() == [[0, 16], [0, 28]]  # two rows share the pixel


def test_order_of_images_classes_and_heads_does_not_matter():
    (logits, query, key, weight, bias), unlabelled = scene(layers=3)
    loss = lambda probs, query, key, weight, unlabelled: attentive_similarity_loss(
        probs, query, key, weight, bias, unlabelled=unlabelled)
    expected = loss(logits.softmax(1), query, key, weight, unlabelled)
    assert_close(loss(logits.softmax(1)[:, [2, 0, 1]], query, key, weight, unlabelled), expected)
    assert_close(loss(*(x.flip(0) for x in (logits.softmax(1), query, key)), weight, unlabelled.flip(0)), expected)
    assert_close(loss(logits.softmax(1), *(x[:, [1, 2, 0]] for x in (query, key, weight)), unlabelled), expected)


def test_a_vector_added_to_all_keys_changes_nothing():
    (logits, query, key, *convolution), _ = scene()
    loss = lambda key: attentive_similarity_loss(logits.softmax(1), query, key, *convolution)
    assert_close(loss(key + 3), loss(key))


def test_large_logits_stay_finite():
    (logits, query, key, *convolution), _ = scene()
    inputs = [x.float() for x in (logits.softmax(1), 1e4 * query, 1e4 * key, *convolution)]
    assert attentive_similarity_loss(*inputs).isfinite()
    assert all(slope.isfinite().all() for slope in gradients(inputs, attentive_similarity_loss))


def test_what_is_detached_gets_no_gradient():
    inputs, _ = scene()
    full = gradients(inputs, attentive_similarity_loss)
    still = gradients(inputs, lambda *x: attentive_similarity_loss(*x, detach_probs=True))
    alone = gradients(inputs, lambda *x: attentive_similarity_loss(*x, detach_similarity=True))
    assert still[0] is None and alone[1:] == (None,) * 4
    assert_close(still[1:], full[1:])
    assert_close(alone[0], full[0])


def test_notes_are_those_of_the_pairs_that_count():
    inputs, unlabelled = scene(grid=(4, 5), size=(4, 5))
    options = {"radius": 2, "unlabelled": unlabelled, "keep": torch.tensor([True, False])}
    _, query, key, weight, bias = inputs
    weight.requires_grad_()
    loss, notes = attentive_similarity_loss(*inputs, return_stats=True, **options)
    assert_close(loss, attentive_similarity_loss(*inputs, **options))
    A = attention_maps(query, key, 3**-0.5)
    S = torch.sigmoid(((A + A.transpose(2, 3)) * weight.view(-1, 1, 1)).sum(1) + bias)[0]
    place = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    reach, free = (place[:, None] - place).abs().amax(-1), unlabelled[0].flatten()
    counted = S[(reach > 0) & (reach <= 2) & free & free[:, None]]
    assert_close(notes["similarity_mean"], counted.mean().detach())
    assert_close(notes["similarity_std"], counted.std(correction=0).detach())
    assert notes["weight"] == weight.mean() and notes["bias"] == bias
    assert all(value.ndim == 0 and not value.requires_grad for value in notes.values())


def test_notes_without_pairs_are_zero():
    inputs, unlabelled = scene()
    _, notes = attentive_similarity_loss(*inputs, unlabelled=unlabelled & False, return_stats=True)
    assert notes["similarity_mean"] == notes["similarity_std"] == 0


def test_grid_follows_the_aspect_of_the_image():
    inputs, _ = scene(grid=(4, 5), size=(8, 10))
    wide, _ = scene(grid=(2, 10), size=(4, 20))
    for given, grid in ((inputs, (4, 5)), (wide, (2, 10))):
        assert_close(attentive_similarity_loss(*given), attentive_similarity_loss(*given, grid=grid))
    assert not torch.isclose(attentive_similarity_loss(*inputs), attentive_similarity_loss(*inputs, grid=(5, 4)))


def test_types_and_strides():
    inputs, unlabelled = scene()
    exact = attentive_similarity_loss(*inputs, unlabelled=unlabelled)
    single = [x.float() for x in inputs]
    assert attentive_similarity_loss(*single, unlabelled=unlabelled).dtype == torch.float32
    assert_close(attentive_similarity_loss(*single, unlabelled=unlabelled), exact.float())
    half = [x.bfloat16().requires_grad_() for x in inputs]
    loss = attentive_similarity_loss(*half, unlabelled=unlabelled)
    assert loss.dtype == torch.float32
    assert_close(loss, attentive_similarity_loss(*(x.detach().float() for x in half), unlabelled=unlabelled))
    assert [x.dtype for x in torch.autograd.grad(loss, half)] == [torch.bfloat16] * 5
    strided = [x.mT.contiguous().mT for x in inputs[:3]]
    assert not strided[1].is_contiguous()
    assert_close(attentive_similarity_loss(*strided, *inputs[3:], unlabelled=unlabelled), exact)


def test_autocast_does_not_lower_the_precision():
    inputs = [x.float().requires_grad_() for x in scene()[0]]
    loss = lambda: 1e4 * attentive_similarity_loss(*inputs)  # far above the absolute tolerance
    exact = loss()
    slopes = torch.autograd.grad(exact, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = loss()
        assert_close(lower, exact)
        assert_close(torch.autograd.grad(lower, inputs), slopes, rtol=1e-4, atol=1e-2)


def test_memory_is_not_that_of_the_matrix():
    side, largest = 32, 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            out = function(*arguments, **(options or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    attention = SpatialSelfAttention(8)
    attention(torch.randn(2, 8, side, side))
    with Largest():
        attentive_similarity_loss(torch.rand(2, 2, side, side).softmax(1), attention.query, attention.key,
                                  attention.similarity.weight, attention.similarity.bias).backward()
    assert largest < side**4 / 8


@pytest.mark.parametrize("changes,error,message", [
    ({"probs": torch.ones(2, 3, 8, 10, dtype=torch.int64)}, TypeError, "probs: found dtype torch.int64"),
    ({"probs": torch.rand(2, 8, 10)}, ValueError, r"probs: found \[2, 8, 10\], expected \[N,C,H,W\]"),
    ({"query": torch.rand(2, 20, 3)}, ValueError, r"query: found \[2, 20, 3\], expected \[N,nL,hw,d\]"),
    ({"key": torch.rand(2, 2, 20, 4)}, ValueError, r"query, key: .*expected \[2,nL,hw,d\] twice"),
    ({"weight": torch.rand(3)}, ValueError, "weight, bias: found 3 and 1 elements, expected 2 and 1"),
    ({"bias": torch.rand(2)}, ValueError, "weight, bias: found 2 and 2 elements"),
    ({"unlabelled": torch.ones(2, 1, 4, 5, dtype=torch.bool)}, ValueError, r"unlabelled: .*\[2, 1, 8, 10\]"),
    ({"unlabelled": torch.ones(2, 1, 8, 10)}, ValueError, "unlabelled: found torch.float32"),
    ({"keep": torch.ones(3, dtype=torch.bool)}, ValueError, r"keep: .*expected torch.bool \[2\]"),
    ({"grid": (4, 4)}, ValueError, r"grid: found \(4, 4\), expected \(h, w\) of the 20 cells"),
    ({"probs": torch.rand(2, 3, 7, 7)}, ValueError, "grid: 20 cells do not make a grid like 7×7 pixels"),
    ({"radius": 0}, ValueError, "radius: found 0"),
    ({"sigma_xy": 0}, ValueError, "sigma_xy: found 0"),
    ({"logit_scale": "sqrt"}, ValueError, "logit_scale: found 'sqrt'.*did you mean 'sqrt_dk'"),
    ({"similarity_scale": "h"}, ValueError, "similarity_scale: found 'h', expected one of hw"),
    ({"denominator": "omega"}, ValueError, "denominator: found 'omega'.*did you mean 'omega_u'"),
    ({"resize": "bicubic"}, ValueError, "resize: found 'bicubic', expected one of bilinear, area, nearest"),
])
def test_wrong_arguments_are_named(changes, error, message):
    given = dict(zip(("probs", "query", "key", "weight", "bias"), scene()[0], strict=True)) | changes
    with pytest.raises(error, match=message):
        attentive_similarity_loss(**given)


HEAVY = ("torch._dynamo", "matplotlib", "scipy", "pandas", "psutil", "pydantic")


@pytest.mark.parametrize("module", ["pce", "mcrf", "asl"])
def test_importing_a_loss_does_not_load_what_it_does_not_run(module):
    code = f"import sys, attenscribble.method.{module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
