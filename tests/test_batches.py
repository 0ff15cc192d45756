"""Batches: augmentation against SciPy, what a store may read, order of slices, resizing."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from attenscribble.basics.errors import DataError
from attenscribble.data.batches import (
    Draw,
    SliceStore,
    _resize_index,
    _turn_and_flip,
    batches,
    draw_augmentation,
    index_map,
    resize_image,
    resize_labels,
)
from attenscribble.data.scans import Case, acdc

IGNORE = 4


class Stand:
    "A case of the fields a store may use; whatever is not given may not be read."

    def __init__(self, name: str = "patient001_frame01", **fields: np.ndarray | None) -> None:
        self.name = name
        self.__dict__.update(fields)

    def __getattr__(self, field: str) -> None:
        raise AssertionError(f"the store read {field}")


def noise(
    rng: np.random.Generator, shape: tuple[int, int, int], *, unlabelled: bool = True, patient: str = "p"
) -> Case:
    "A case of noise: any pixel read from the wrong place shows. Its label is no label of these four classes."
    scribble = rng.integers(0, IGNORE + unlabelled, shape).astype(np.uint8)
    return Case(patient, "f", rng.random(shape, dtype=np.float32), None, scribble=scribble,
                label=np.full(shape, 77, np.uint8))


def scipy_slice(plane: np.ndarray, draw: tuple[int, int, float], size: int, fill: int) -> np.ndarray:
    "One slice the slow way: turn, flip, rotate, then zoom, each on the picture."
    turns, flip, angle = draw
    plane = np.rot90(plane, turns)
    plane = np.flip(plane, flip) if flip >= 0 else plane
    plane = ndimage.rotate(plane, angle, order=0, reshape=False, cval=fill)
    return ndimage.zoom(plane, (size / plane.shape[0], size / plane.shape[1]), order=0)


def any_draw(rng: np.random.Generator, angles: np.ndarray) -> Draw:
    "A draw for each angle, with random turns and flips."
    turns, flip = rng.integers(0, 4, len(angles)), rng.integers(-1, 2, len(angles))
    return Draw(torch.from_numpy(turns), torch.from_numpy(flip), torch.from_numpy(angles.astype(np.float64)))


def disagreements(cases: list[Case], draw: Draw, size: int) -> int:
    "Pixels, of image and target, where a store's batch and SciPy differ; one slice per case."
    batch = SliceStore(iter(cases), classes=4, ignore=IGNORE).batch(torch.arange(len(cases)), size, draw)
    wrong = 0
    for n, case in enumerate(cases):
        one = (int(draw.turns[n]), int(draw.flip[n]), float(draw.angle[n]))
        fill = IGNORE if (case.scribble == IGNORE).any() else 0
        wrong += int((batch.image[n, 0].numpy() != scipy_slice(case.image[0], one, size, 0)).sum())
        wrong += int((batch.target[n].numpy() != scipy_slice(case.scribble[0], one, size, fill)).sum())
    return wrong


@pytest.mark.parametrize("size", [1, 2, 33, 128, 256, 257])
def test_batch_equals_scipy_on_random_sizes_and_all_angles(size):
    rng = np.random.default_rng(size)
    draw = any_draw(rng, np.arange(-20, 20))
    cases = [noise(rng, (1, *rng.integers(1, 300, 2)), unlabelled=bool(n % 3)) for n in range(40)]
    assert disagreements(cases, draw, size) == 0


def test_batch_equals_scipy_on_tiny_slices():
    rng = np.random.default_rng(0)
    for _ in range(10):
        draw = any_draw(rng, np.arange(-20, 20))
        assert disagreements([noise(rng, (1, *rng.integers(1, 6, 2))) for _ in range(40)], draw, 8) == 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [-1, 0, 1])
def test_strides_are_numpys(turns, flip):
    native = np.arange(35, dtype=np.int64).reshape(5, 7)
    view = np.rot90(native, turns)
    view = np.flip(view, flip) if flip >= 0 else view
    one = [torch.tensor([value]) for value in (turns, flip, 5, 7)]
    start, down, right = (int(step) for step in _turn_and_flip(*one))
    assert (down, right) == tuple(step // native.itemsize for step in view.strides)
    assert start == view[0, 0]


def test_resize_index_equals_scipy_where_scipy_keeps_the_last_pixel():
    for size in (1, 2, 64, 96, 128, 256, 257):
        for length in range(1, 300, 7):
            zoomed = ndimage.zoom(np.arange(1, length + 1), size / length, order=0)
            ours = _resize_index(torch.tensor([length]), size)[0].numpy() + 1
            lost = zoomed == 0  # SciPy's rounding can put the last coordinate outside, e.g. 210 pixels to 96
            assert not lost[:-1].any() and (size == 96 or not lost.any())
            np.testing.assert_array_equal(ours[~lost], zoomed[~lost])
    assert ndimage.zoom(np.ones(210), 96 / 210, order=0)[-1] == 0
    assert _resize_index(torch.tensor([210]), 96)[0, -1] == 209


def test_margin_of_a_rotation_follows_the_slice():
    image = np.ones((2, 32, 32), np.float32)
    scribble = np.zeros((2, 32, 32), np.uint8)
    scribble[0, 5, 5] = IGNORE  # the second slice is annotated everywhere
    store = SliceStore([Stand(image=image, scribble=scribble)], classes=4, ignore=IGNORE)
    still = torch.zeros(2, dtype=torch.int64)
    batch = store.batch(torch.arange(2), 32, Draw(still, still - 1, torch.tensor([15.0, 15.0])))
    margin = batch.image[0, 0] == 0
    assert 50 < margin.sum() < 200
    assert (batch.target[0][margin] == IGNORE).all() and (batch.target[0][~margin] == IGNORE).sum() == 1
    assert not batch.target[1].any()


def test_no_draw_is_the_identity_draw():
    rng = np.random.default_rng(1)
    store = SliceStore([noise(rng, (6, 20, 31))], classes=4, ignore=IGNORE)
    still = draw_augmentation(6, "none", torch.Generator())
    plain, drawn = store.batch(torch.arange(6), 24), store.batch(torch.arange(6), 24, still)
    torch.testing.assert_close((plain.image, plain.target), (drawn.image, drawn.target), rtol=0, atol=0)
    same = store.batch(torch.arange(6)[::2], 20)
    assert same.image.shape == (3, 1, 20, 20) and same.image.dtype == torch.float32
    assert same.target.shape == (3, 20, 20) and same.target.dtype == torch.int64


def test_native_slices_come_back_whatever_their_neighbours():
    rng = np.random.default_rng(2)
    cases = [noise(rng, (2, side, side)) for side in (9, 16, 5)]
    store = SliceStore(cases, classes=4, ignore=IGNORE)
    for number, (case, z) in enumerate(itertools.product(cases, range(2))):
        side = case.image.shape[1]
        batch = store.batch(torch.tensor([number]), side)
        np.testing.assert_array_equal(batch.image[0, 0].numpy(), case.image[z])
        np.testing.assert_array_equal(batch.target[0].numpy(), case.scribble[z])


def test_channels_go_through_the_same_map():
    rng = np.random.default_rng(5)
    cases = [noise(rng, (3, side, 11), patient=f"p{side}") for side in (9, 14)]
    both = [Stand(image=np.stack([c.image, 1 - c.image, c.image / 2], 1), scribble=c.scribble) for c in cases]
    single = SliceStore(cases, classes=4, ignore=IGNORE)
    store = SliceStore(both, classes=4, ignore=IGNORE, channels=3)
    draw = any_draw(rng, np.array([0, 12, -7, 0, 0, 19]))
    plain, batch = single.batch(torch.arange(6), 16, draw), store.batch(torch.arange(6), 16, draw)
    assert batch.image.shape == (6, 3, 16, 16) and torch.equal(batch.target, plain.target)
    inside = single_ones(cases).batch(torch.arange(6), 16, draw).image
    for channel, expected in enumerate((plain.image, (1 - plain.image) * inside, plain.image / 2)):
        torch.testing.assert_close(batch.image[:, channel], expected[:, 0], rtol=0, atol=0)
    for number in range(6):
        image, target = store.native(number)
        np.testing.assert_array_equal(image, both[number // 3].image[number % 3])
        np.testing.assert_array_equal(target, cases[number // 3].scribble[number % 3])
    assert store.nbytes == 13 * store.pixels


def single_ones(cases):
    "A store of the same slices, all white: a batch shows what a rotation brings in."
    white = [Stand(image=np.ones_like(case.image), scribble=case.scribble) for case in cases]
    return SliceStore(white, classes=4, ignore=IGNORE)


def test_store_refuses_another_number_of_channels():
    case = noise(np.random.default_rng(0), (2, 5, 5))
    two = Case("p", "f", np.stack([case.image] * 2, 1), None, scribble=case.scribble)
    with pytest.raises(DataError, match="p_f: image: found 2 channels, expected 1, as the dataset says"):
        SliceStore([case, two], classes=4, ignore=IGNORE)
    with pytest.raises(DataError, match="found 1 channels, expected 2"):
        SliceStore([two, case], classes=4, ignore=IGNORE, channels=2)


def test_a_slice_does_not_depend_on_its_batch():
    rng = np.random.default_rng(3)
    store = SliceStore([noise(rng, (8, 40, 30))], classes=4, ignore=IGNORE)
    draw = draw_augmentation(8, "acdc", torch.Generator().manual_seed(0))
    full = store.batch(torch.arange(8), 32, draw)
    order = torch.tensor([5, 0, 7])
    part = store.batch(order, 32, Draw(draw.turns[order], draw.flip[order], draw.angle[order]))
    torch.testing.assert_close((part.image, part.target), (full.image[order], full.target[order]), rtol=0, atol=0)


def test_a_store_knows_what_its_batches_show_and_draws_nothing():
    rng, state = np.random.default_rng(5), torch.get_rng_state()
    cases = [replace(noise(rng, (6, *shape)), scribble=np.where(rng.random((6, *shape)) < 0.995, IGNORE, rng.integers(
        0, 4, (6, *shape))).astype(np.uint8)) for shape in ((40, 30), (16, 16), (15, 33), (9, 12))]
    store = SliceStore(cases, classes=4, ignore=IGNORE)
    shown = [[(plane == k).any() for k in range(4)] for case in cases for plane in case.scribble]
    np.testing.assert_array_equal(store.shown, shown)
    assert store.side == 40
    for size in (16, 32, 48):
        batch = store.batch(torch.arange(len(store)), size)
        expected = [[bool((one == k).any()) for k in range(4)] for one in batch.target]
        np.testing.assert_array_equal(store.shown_at(size), expected)
        assert (store.shown_at(size) == shown).all() == (size == 48)
    store.set_pseudo(torch.full((store.pixels,), 3, dtype=torch.uint8))
    assert store.shown_at(16)[:6, 3].all(), "guessed labels count, where a batch has them"
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_scribble_store_never_reads_the_label_and_the_other_way_round():
    image, target = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.uint8)
    assert len(SliceStore([Stand(image=image, scribble=target)], classes=2, ignore=2)) == 1
    assert len(SliceStore([Stand(image=image, label=target)], classes=2, ignore=2, target="label")) == 1
    with pytest.raises(AssertionError, match="the store read scribble"):
        SliceStore([Stand(image=image, label=target)], classes=2, ignore=2)


def test_single_class_counts_the_targets_own_classes():
    image = np.zeros((5, 4, 4), np.float32)
    scribble = np.full((5, 4, 4), IGNORE, np.uint8)  # slice 0: nothing annotated
    scribble[1, 0] = 0  # background only
    scribble[2, 0], scribble[2, 1] = 0, 3
    scribble[3] = 2  # one class, nothing unannotated
    scribble[4, 0, 0], scribble[4, 3, 3] = 1, 2
    store = SliceStore([Stand("a_b", image=image, scribble=scribble)], classes=4, ignore=IGNORE)
    assert store.single_class.tolist() == [True, True, False, True, False]
    assert store.batch(torch.tensor([2, 3]), 4).single_class.tolist() == [False, True]
    assert store.names[2] == "a_b_slice_2" and len(store.names) == len(store) == 5


def test_store_owns_its_pixels_and_takes_any_layout():
    image = np.random.default_rng(4).random((7, 6, 3), dtype=np.float32)
    case = Stand(image=image.T, scribble=np.asfortranarray(np.full((3, 6, 7), IGNORE, np.uint8)))
    case.image.flags.writeable = False
    expected = image.T.copy()
    store = SliceStore([case], classes=4, ignore=IGNORE)
    image[:] = -1
    position, inside = index_map(torch.tensor([6]), torch.tensor([7]), 6)
    assert inside is None
    np.testing.assert_array_equal(store.batch(torch.tensor([1]), 6).image[0, 0].numpy(),
                                  expected[1].ravel()[position[0].numpy()])
    assert store.nbytes == 3 * 6 * 7 * 5


def test_store_keeps_neither_cases_nor_their_arrays():
    seen: list[weakref.ref] = []
    still_there = []

    def lazily() -> Iterator[Case]:
        for number in range(4):
            still_there.append(sum(ref() is not None for ref in seen[:-1]))  # the loop still holds the last one
            case = noise(np.random.default_rng(number), (2, 5, 5), patient=f"p{number}")
            seen.append(weakref.ref(case))
            arrays.extend(weakref.ref(array) for array in (case.image, case.scribble, case.label))
            yield case

    arrays: list[weakref.ref] = []
    store = SliceStore(lazily(), classes=4, ignore=IGNORE)
    gc.collect()
    assert still_there == [0, 0, 0, 0]
    assert len(arrays) == 12 and not any(ref() is not None for ref in arrays)
    assert len(store) == 8 and store.names[-1] == "p3_f_slice_1"


@pytest.mark.parametrize(("options", "message"), [
    ({"target": "dense"}, "target: found 'dense', expected 'scribble' or 'label'"),
    ({"ignore": 3}, r"ignore: found 3, expected a value in 4\.\.255"),
    ({"ignore": 300}, r"ignore: found 300, expected a value in 4\.\.255"),
    ({"ignore": 255}, r"p9_f: scribble: found the values \[4\], expected 0\.\.3, or 255 where there is none"),
    ({"target": "label"}, r"p9_f: label: found the values \[77\]"),
])
def test_store_refuses_bad_options(options, message):
    case = noise(np.random.default_rng(0), (2, 5, 5), patient="p9")
    with pytest.raises(ValueError, match=message):
        SliceStore([case], **{"classes": 4, "ignore": IGNORE, **options})


@pytest.mark.parametrize("target", ["scribble", "label"])
def test_store_names_the_case_without_a_target(target):
    other = {"scribble": "label", "label": "scribble"}[target]
    case = Case("p7", "f", np.zeros((1, 2, 2), np.float32), None, **{other: np.zeros((1, 2, 2), np.uint8)})
    with pytest.raises(DataError, match=f"p7_f: {target}: found none, expected one in every case"):
        SliceStore([case], classes=4, ignore=IGNORE, target=target)


def test_store_refuses_no_case():
    with pytest.raises(ValueError, match="cases: found none"):
        SliceStore(iter([]), classes=4, ignore=IGNORE)


@pytest.mark.parametrize(("index", "message"), [
    (torch.tensor([3]), r"index: found 3\.\.3, expected 0\.\.2"),
    (torch.tensor([-1, 0]), r"index: found -1\.\.0, expected 0\.\.2"),
    (torch.tensor([[0]]), r"index: found torch.int64 \(1, 1\), expected int64 \[N\]"),
    (torch.tensor([0.0]), "index: found torch.float32"),
    (torch.tensor([True, False, True]), "index: found torch.bool"),
    (torch.tensor([], dtype=torch.int64), r"index: found torch.int64 \(0,\)"),
])
def test_batch_refuses_a_bad_index(index, message):
    store = SliceStore([noise(np.random.default_rng(0), (3, 5, 5))], classes=4, ignore=IGNORE)
    with pytest.raises(ValueError, match=message):
        store.batch(index, 5)


def test_batch_refuses_a_draw_of_another_length_and_a_size_of_nothing():
    store = SliceStore([noise(np.random.default_rng(0), (3, 5, 5))], classes=4, ignore=IGNORE)
    with pytest.raises(ValueError, match="draw: found 2 draws, expected 3, one per slice"):
        store.batch(torch.arange(3), 5, draw_augmentation(2, "acdc", torch.Generator()))
    with pytest.raises(ValueError, match="size: found 0, expected at least 1"):
        store.batch(torch.arange(3), 0)
    with pytest.raises(ValueError, match=r"Draw: found the shapes .* of turns, flip and angle, expected one shape"):
        Draw(torch.zeros(2), torch.zeros(3), torch.zeros(2))


def test_acdc_draws_have_the_released_probabilities():
    count = 40_000  # a share's standard deviation is at most 0.0025
    draw = draw_augmentation(count, "acdc", torch.Generator().manual_seed(0))
    turned = draw.flip >= 0
    assert abs(turned.double().mean() - 0.5) < 0.01
    assert not draw.angle[turned].any() and not draw.turns[~turned].any()
    shares = torch.bincount(draw.turns[turned] * 2 + draw.flip[turned], minlength=8) / turned.sum()
    assert shares.shape == (8,) and (shares - 1 / 8).abs().max() < 0.012
    # 19 of 20 rotations show, for the angle may be 0
    assert abs((draw.angle != 0).double().mean() - 0.25 * 39 / 40) < 0.01
    angles = draw.angle[draw.angle != 0]
    assert sorted(angles.unique().tolist()) == [a for a in range(-20, 20) if a]


def test_chaos_draws_only_rotate():
    draw = draw_augmentation(40_000, "chaos", torch.Generator().manual_seed(0))
    assert (draw.flip == -1).all() and not draw.turns.any()
    assert abs((draw.angle != 0).double().mean() - 0.25 * 39 / 40) < 0.01


def test_draws_repeat_and_both_kinds_use_the_generator_alike():
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    one, two = draw_augmentation(64, "acdc", first), draw_augmentation(64, "acdc", second)
    assert torch.equal(one.angle, two.angle) and torch.equal(one.flip, two.flip)
    draw_augmentation(64, "acdc", first), draw_augmentation(64, "chaos", second)
    assert torch.equal(first.get_state(), second.get_state())
    before = first.get_state()
    none = draw_augmentation(3, "none", first)
    assert torch.equal(first.get_state(), before)
    assert none.turns.tolist() == [0] * 3 and none.flip.tolist() == [-1] * 3 and none.angle.tolist() == [0] * 3
    with pytest.raises(ValueError, match="kind: found 'ACDC', expected one of acdc, chaos, none"):
        draw_augmentation(3, "ACDC", first)


def test_batches_are_epochs_in_a_fresh_order():
    stream = batches(1512, 12, torch.Generator().manual_seed(0))
    epochs = [torch.cat(list(itertools.islice(stream, 126))) for _ in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(1512))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_batches_keep_the_last_partial_batch():
    stream = batches(10, 4, torch.Generator())
    assert [len(index) for index in itertools.islice(stream, 6)] == [4, 4, 2, 4, 4, 2]
    assert [len(index) for index in itertools.islice(batches(3, 8, torch.Generator()), 2)] == [3, 3]
    with pytest.raises(ValueError, match="count, batch_size: found 0, 4"):
        batches(0, 4, torch.Generator())


def test_batches_resume_in_the_middle_of_an_epoch():
    full = list(itertools.islice(batches(10, 4, torch.Generator().manual_seed(5)), 11))
    rest = itertools.islice(batches(10, 4, torch.Generator().manual_seed(5)), 7, 11)
    assert all(torch.equal(a, b) for a, b in zip(full[7:], rest, strict=True))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(("before", "after"), [((256, 256), (216, 180)), ((7, 5), (3, 9)), ((1, 1), (4, 2))])
def test_resize_labels_equals_torch(mode, before, after):
    labels = torch.randint(5, (2, 3, *before), generator=torch.Generator().manual_seed(0))
    reference = torch.nn.functional.interpolate(labels.float(), after, mode=mode).long()
    assert torch.equal(resize_labels(labels, after, mode), reference)


def test_resize_labels_keeps_type_and_names_a_bad_mode():
    labels = torch.randint(5, (8, 6)).to(torch.uint8)
    assert torch.equal(resize_labels(labels, (8, 6)), labels) and resize_labels(labels, 4).dtype == torch.uint8
    assert torch.equal(resize_labels(resize_labels(labels, (24, 18)), (8, 6)), labels)
    with pytest.raises(ValueError, match="mode: found 'bilinear', expected 'nearest-exact' or 'nearest'"):
        resize_labels(labels, 4, "bilinear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (3,), (2, 1)])
def test_resize_image_is_bilinear_with_centres_aligned(dtype, lead):
    image = torch.rand(*lead, 6, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    resized = resize_image(image, (12, 9))
    assert resized.shape == (*lead, 12, 9) and resized.dtype == dtype
    # doubled rows lie a quarter pixel off the old centres; the border repeats
    above = torch.cat([image[..., :1, :], image[..., :-1, :]], -2)
    even = (0.75 * image.double() + 0.25 * above.double()).to(dtype)
    torch.testing.assert_close(resized[..., ::2, :], even)
    with pytest.raises(TypeError, match=r"image: found torch\.uint8, expected a floating-point tensor"):
        resize_image(torch.zeros(2, 2, dtype=torch.uint8), 4)


def test_real_acdc_volume_against_scipy(data_root):
    case = next(acdc(data_root / "acdc").cases())
    cases = [Case(case.patient, f"z{z}", case.image[z : z + 1], None, scribble=case.scribble[z : z + 1])
             for z in range(len(case.image))]
    rng = np.random.default_rng(0)
    assert disagreements(cases, any_draw(rng, rng.integers(-20, 20, len(cases))), 256) == 0
