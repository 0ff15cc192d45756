"""Partial cross-entropy: hand values, independent oracles, what it may not depend on, edges, errors, no waiting."""

import copy
import pickle
import pydoc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch.testing import assert_close

from attenscribble.method.pce import partial_cross_entropy

REDUCTIONS = ("batch", "image")


def some(count=3, classes=4, side=6, share=0.3, ignore=4, dtype=torch.float64):
    "Logits and a scribble on this share of the pixels; the first pixel of every image is annotated."
    generator = torch.Generator().manual_seed(count * 1000 + side)
    logits = 3 * torch.randn(count, classes, side, side, generator=generator, dtype=torch.float64)
    scribble = torch.randint(classes, (count, side, side), generator=generator)
    drawn = torch.rand(scribble.shape, generator=generator) < share
    drawn[:, 0, 0] = True
    return logits.to(dtype).requires_grad_(), scribble.masked_fill(~drawn, ignore)


def value_and_gradient(logits, scribble, **options):
    loss = partial_cross_entropy(logits, scribble, **options)
    return loss, torch.autograd.grad(loss, logits)[0]


def test_hand_value():
    probs = torch.tensor([[0.5, 0.25], [0.125, 0.9]], dtype=torch.float64)
    logits = torch.stack([probs, 1 - probs]).log()[None]
    scribble = torch.tensor([[[0, 0], [0, 2]]])  # ½, ¼ and ⅛: (1 + 2 + 3)/3 · ln 2
    assert_close(partial_cross_entropy(logits, scribble, ignore=2), torch.tensor(2 * np.log(2)))


@pytest.mark.parametrize("ignore", [4, -1, 255, -100])
def test_torch_s_own_masked_cross_entropy_agrees(ignore):
    logits, scribble = some(ignore=ignore)
    oracle = F.cross_entropy(logits, scribble, ignore_index=ignore)
    loss, gradient = value_and_gradient(logits, scribble, ignore=ignore)
    assert_close(loss, oracle)
    assert_close(gradient, torch.autograd.grad(oracle, logits)[0])


def test_scipy_agrees_for_both_reductions():
    logits, scribble = some()
    log_probs, ids = log_softmax(logits.detach().numpy(), axis=1), scribble.numpy()
    images = [[-log_probs[n, c, y, x] for (y, x), c in np.ndenumerate(ids[n]) if c != 4] for n in range(3)]
    assert len({len(image) for image in images}) > 1  # else the two reductions are the same
    batch, image = (partial_cross_entropy(logits, scribble, ignore=4, reduction=name).item() for name in REDUCTIONS)
    assert np.isclose(batch, np.mean(np.concatenate(images)), rtol=1e-12)
    assert np.isclose(image, np.mean([np.mean(image) for image in images]), rtol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    logits, scribble = some(count=2, side=3)
    assert torch.autograd.gradcheck(
        lambda z: partial_cross_entropy(z, scribble, ignore=4, reduction=reduction), (logits,)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_unannotated_pixels_have_no_say_and_get_no_pull(reduction):
    logits, scribble = some()
    outside = (scribble == 4)[:, None].expand_as(logits)
    loss, gradient = value_and_gradient(logits, scribble, ignore=4, reduction=reduction)
    assert gradient[outside].eq(0).all() and gradient[~outside].ne(0).all()
    other = torch.where(outside, 50 * torch.randn_like(logits), logits).detach().requires_grad_()
    changed, changed_gradient = value_and_gradient(other, scribble, ignore=4, reduction=reduction)
    assert changed == loss and changed_gradient.equal(gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_order_of_images_classes_pixels_and_a_constant_do_not_matter(reduction):
    logits, scribble = some()
    loss = partial_cross_entropy(logits, scribble, ignore=4, reduction=reduction)
    renamed = torch.tensor([2, 0, 3, 1, 4])  # class c becomes renamed[c]
    for z, y in ((logits.flip(0), scribble.flip(0)), (logits.flip(2), scribble.flip(1)),
                 (logits[:, renamed[:4].argsort()], renamed[scribble]),
                 (logits + torch.randn(3, 1, 6, 6), scribble)):
        assert_close(partial_cross_entropy(z, y, ignore=4, reduction=reduction), loss)


def test_an_image_without_annotation_counts_for_nothing():
    logits, scribble = some()
    scribble[1] = 4
    for reduction in REDUCTIONS:
        loss = partial_cross_entropy(logits, scribble, ignore=4, reduction=reduction)
        without = partial_cross_entropy(logits[[0, 2]], scribble[[0, 2]], ignore=4, reduction=reduction)
        assert_close(loss, without)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 4, 1, 1), (0, 4, 5, 5)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_annotated_pixel_is_exactly_zero_with_a_zero_gradient(shape, reduction):
    logits = (1e4 * torch.randn(shape)).requires_grad_()
    scribble = torch.full((shape[0], *shape[2:]), 4)
    loss, gradient = value_and_gradient(logits, scribble, ignore=4, reduction=reduction)
    assert loss.item() == 0 and gradient.shape == shape and gradient.eq(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_annotated_one_pixel_and_one_class(reduction):
    logits, scribble = some(share=1.0)
    assert_close(partial_cross_entropy(logits, scribble, ignore=4, reduction=reduction),
                 F.cross_entropy(logits, scribble))
    one = partial_cross_entropy(torch.zeros(1, 4, 1, 1), torch.ones(1, 1, 1).long(), ignore=4, reduction=reduction)
    assert_close(one, torch.tensor(4.0).log())
    only = torch.randn(2, 1, 3, 3)
    assert partial_cross_entropy(only, torch.zeros(2, 3, 3).long(), ignore=1, reduction=reduction) == 0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss, gradient = value_and_gradient(logits, torch.ones(1, 1, 1).long(), ignore=2)
    assert loss == 2e4
    assert_close(gradient.flatten(), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    logits, scribble = some(side=64, share=1.0, dtype=dtype)
    loss, gradient = value_and_gradient(logits, scribble, ignore=4)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert_close(loss.double(), partial_cross_entropy(logits.double(), scribble, ignore=4), rtol=1e-6, atol=0)


def test_autocast_keeps_float32():
    logits, scribble = some(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = partial_cross_entropy(logits, scribble, ignore=4)
    assert loss.dtype == torch.float32
    assert_close(loss, partial_cross_entropy(logits, scribble, ignore=4))


def test_strides_do_not_matter():
    logits, scribble = some()
    loss = partial_cross_entropy(logits, scribble, ignore=4)
    wide = scribble.repeat_interleave(2, 2)[..., ::2]
    assert not wide.is_contiguous()
    assert_close(partial_cross_entropy(logits.to(memory_format=torch.channels_last), wide, ignore=4), loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_waits_for_the_device(reduction):
    "Tensors on the meta device hold no values: whoever asks for one fails."
    logits = torch.randn(2, 4, 8, 8, device="meta", requires_grad=True)
    scribble = torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        scribble.sum().item()
    loss = partial_cross_entropy(logits, scribble, ignore=4, reduction=reduction)
    loss.backward()
    assert loss.shape == () and logits.grad.shape == logits.shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_graph_for_the_compiler(reduction):
    logits, scribble = some()
    compiled = torch.compile(partial_cross_entropy, fullgraph=True, backend="eager")
    assert_close(compiled(logits, scribble, ignore=4, reduction=reduction),
                 partial_cross_entropy(logits, scribble, ignore=4, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("form", [
    partial_cross_entropy, lambda *given, **options: partial_cross_entropy.of_batch(*given, **options).mean(),
], ids=["plain", "of_batch"])
def test_a_function_that_calls_it_is_one_graph_and_has_the_same_gradient(form, reduction):
    logits, scribble = some()
    step = lambda z: 2 * form(z * 1.5, scribble, ignore=4, reduction=reduction) + z.mean()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = compiled(logits), step(logits)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_it_is_shown_pickled_and_copied_as_the_function_it_looks_like():
    shown = pydoc.render_doc(partial_cross_entropy, renderer=pydoc.plaintext)
    assert "partial_cross_entropy(logits: torch.Tensor, scribble: torch.Tensor, *, ignore: int, " in shown
    assert "-> torch.Tensor\n    Cross-entropy averaged over the annotated pixels" in shown
    assert pickle.loads(pickle.dumps(partial_cross_entropy)) is partial_cross_entropy
    assert copy.deepcopy([partial_cross_entropy])[0] is partial_cross_entropy


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"reduction": "mean"}, ValueError, 'reduction: found \'mean\', expected "batch", "image" or "class"'),
    ({"logits": torch.zeros(2, 4, 5, 5).long()}, TypeError, r"logits: found dtype torch\.int64, expected floats"),
    ({"logits": torch.zeros(4, 5, 5)}, ValueError, r"logits: found shape \(4, 5, 5\), expected \[N,C,H,W\]"),
    ({"scribble": torch.zeros(2, 5, 5).byte()}, TypeError, "scribble: found dtype torch.uint8, expected torch.int64"),
    ({"scribble": torch.zeros(2, 1, 5, 5).long()}, ValueError, r"scribble: found shape \(2, 1, 5, 5\), expected"),
    ({"scribble": torch.zeros(2, 5, 4).long()}, ValueError, r"scribble: found shape \(2, 5, 4\), expected \(2, 5, 5\)"),
    ({"ignore": 3}, ValueError, "ignore: found 3, which is one of the 4 classes"),
    ({"ignore": 0}, ValueError, "ignore: found 0, which is one of the 4 classes"),
    ({"ignore": 255}, ValueError, r"scribble: found class ids \[4\], expected 0 … 3 or ignore=255"),
    ({"scribble": torch.full((2, 5, 5), -1)}, ValueError, r"class ids \[-1\], expected 0 … 3 or ignore=4"),
])
def test_wrong_input_is_named(change, error, message):
    arguments = {"logits": torch.zeros(2, 4, 5, 5), "scribble": torch.full((2, 5, 5), 4), "ignore": 4} | change
    with pytest.raises(error, match=message):
        partial_cross_entropy(**arguments)
