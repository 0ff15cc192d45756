"""A scan's way through a network and into a file: grid, modes, memory, geometry and refusals."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # reads NIfTI by its own code
import torch
from torch import nn
from torch.nn import functional as F

from attenscribble.data.scans import Case, acdc
from attenscribble.runs import inference
from attenscribble.runs.inference import evaluating, predict_volume, save_mask


class Thresholds(nn.Module):
    "A stand-in for a network: four classes by intensity, from the first channel."

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.1, 0.4, 0.6, 0.9]))
        self.seen = []

    def forward(self, image):
        self.seen.append((tuple(image.shape), image.dtype, self.training, torch.is_inference_mode_enabled()))
        return -(image[:, :1] - self.centres[:, None, None]).square()


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    return rng.random((5, 37, 52)).astype(np.float32)


def by_loops(image, size):
    "The route for `Thresholds`, one pixel at a time: half-pixel centres, clamped at the border."
    def weights(i, before, after):
        at = min(max((i + 0.5) * before / after - 0.5, 0), before - 1)
        low = int(at)
        return low, min(low + 1, before - 1), at - low

    rows, columns = image.shape
    small = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y0, y1, v = weights(i, rows, size)
            x0, x1, u = weights(j, columns, size)
            small[i, j] = ((1 - v) * ((1 - u) * image[y0, x0] + u * image[y0, x1])
                           + v * ((1 - u) * image[y1, x0] + u * image[y1, x1]))
    classes = np.abs(small[..., None] - [0.1, 0.4, 0.6, 0.9]).argmin(-1)
    return np.array([[classes[(2 * y + 1) * size // (2 * rows), (2 * x + 1) * size // (2 * columns)]
                      for x in range(columns)] for y in range(rows)])


@pytest.mark.parametrize("size", [16, 45, 64])
def test_prediction_equals_loops_over_pixels(scan, size):
    mask = predict_volume(Thresholds().double(), scan.astype(np.float64), size=size)
    assert mask.dtype == np.uint8 and mask.shape == scan.shape
    np.testing.assert_array_equal(mask[2], by_loops(scan[2].astype(np.float64), size))


@pytest.mark.parametrize("size", [16, 45, 64])
def test_the_released_way_back_is_torchs_nearest(scan, size):
    planes = torch.from_numpy(scan)[:, None]
    small = F.interpolate(planes, (size, size), mode="bilinear", align_corners=False)
    classes = Thresholds()(small).argmax(1, keepdim=True).float()
    expected = F.interpolate(classes, scan.shape[1:], mode="nearest")[:, 0].numpy()
    np.testing.assert_array_equal(predict_volume(Thresholds(), scan, size=size, back="nearest"), expected)
    assert (predict_volume(Thresholds(), scan, size=size) != expected).any()
    with pytest.raises(ValueError, match="mode: found 'near', expected 'nearest-exact' or 'nearest'"):
        predict_volume(Thresholds(), scan, size=size, back="near")


def test_every_slice_lands_in_its_place_whatever_the_batch(scan):
    expected = np.stack([predict_volume(Thresholds(), plane[None], size=32)[0] for plane in scan])
    for batch_size in (1, 2, 5, 16):
        model = Thresholds()
        np.testing.assert_array_equal(predict_volume(model, scan, size=32, batch_size=batch_size), expected)
        assert max(shape[0] for shape, *_ in model.seen) == min(batch_size, len(scan))
        assert sum(shape[0] for shape, *_ in model.seen) == len(scan)


def test_channels_reach_the_network(scan):
    channels = np.stack([scan, 1 - scan], axis=1)
    model = Thresholds()
    np.testing.assert_array_equal(predict_volume(model, channels, size=32), predict_volume(Thresholds(), scan, size=32))
    assert model.seen[0][0] == (5, 2, 32, 32)


def test_strides_precision_and_tensors_do_not_matter(scan):
    expected = predict_volume(Thresholds(), scan, size=32)
    frozen = scan.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(scan), scan[::-1].copy()[::-1], scan.astype(np.float64), torch.tensor(scan), frozen):
        np.testing.assert_array_equal(predict_volume(Thresholds(), same, size=32), expected)
    model = Thresholds().to(torch.bfloat16)
    predict_volume(model, scan, size=32)
    assert model.seen[0][1] == torch.bfloat16, "the image takes the type of the weights"


def test_autocast_reaches_the_convolutions(scan):
    class Conv(nn.Conv2d):
        def forward(self, image):
            logits = super().forward(image)
            self.seen = logits.dtype
            return logits

    torch.manual_seed(0)
    model = Conv(1, 3, 3, padding=1)
    plain = predict_volume(model, scan, size=32)
    assert model.seen == torch.float32
    half = predict_volume(model, scan, size=32, autocast=torch.bfloat16, device="cpu")
    assert model.seen == torch.bfloat16
    assert (plain == half).mean() > 0.95
    with torch.autocast("cpu", torch.bfloat16):
        predict_volume(model, scan, size=32)
    assert model.seen == torch.float32, "None means plain precision, also inside another autocast"


def test_modes_are_restored_part_by_part(scan):
    model = nn.Sequential(Thresholds(), nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(4)))
    model[1][1].eval()  # a frozen normalisation in a model that trains
    before = [part.training for part in model.modules()]
    first = predict_volume(model, scan, size=32)
    np.testing.assert_array_equal(first, predict_volume(model, scan, size=32))
    assert [part.training for part in model.modules()] == before
    assert model[0].seen[0][2:] == (False, True), "eval mode, inference mode"
    assert not torch.is_inference_mode_enabled()
    with pytest.raises(RuntimeError, match="broken"), evaluating(model):
        raise RuntimeError("broken")
    assert [part.training for part in model.modules()] == before


def test_a_model_without_weights_runs_on_the_cpu(scan):
    class Fixed(nn.Module):
        def forward(self, image):
            return torch.cat([1 - image, image], dim=1)

    mask = predict_volume(Fixed(), scan, size=32)
    small = F.interpolate(torch.from_numpy(scan)[:, None], (32, 32), mode="bilinear", align_corners=False)
    assert mask.mean() == pytest.approx(float((small > 0.5).float().mean()), abs=0.02)


@pytest.mark.parametrize(("image", "error", "message"), [
    (np.zeros((2, 8, 8), np.int16), TypeError, "image: found torch.int16, expected floating point in"),
    (np.zeros((8, 8), np.float32), ValueError, r"image: found shape \(8, 8\), expected \[Z,Y,X\] or \[Z,K,Y,X\]"),
    (np.zeros((0, 8, 8), np.float32), ValueError, r"image: found shape \(0, 8, 8\), expected .* not empty"),
])
def test_wrong_images_are_refused(image, error, message):
    with pytest.raises(error, match=message):
        predict_volume(Thresholds(), image, size=8)


class Reply(nn.Module):
    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def forward(self, image):
        return self.reply


def test_wrong_logits_are_refused():
    image = np.zeros((2, 8, 8), np.float32)
    message = r"model: found an output of shape .*, expected \[N,C,H,W\] .* \(2, 8, 8\)"
    for shape in ((2, 3, 4, 4), (2, 8, 8), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match=message):
            predict_volume(Reply(torch.zeros(shape)), image, size=8)
    logits = torch.zeros(2, 3, 8, 8)
    logits[1, 2, 3, 4] = torch.nan
    with pytest.raises(FloatingPointError, match="model: found NaN in its logits"):
        predict_volume(Reply(logits), image, size=8)
    logits[1, 2, 3, 4] = -torch.inf
    assert not predict_volume(Reply(logits), image, size=8).any()


# --- files --------------------------------------------------------------------------------------------------------


def make_case(affine=None, spacing_mm=(10.0, 1.5, 1.25), shape=(3, 5, 4)):
    return Case("patient001", "frame01", np.zeros(shape, np.float32), spacing_mm, affine)


OBLIQUE = np.array([[0.0, -1.5, 0.0, 30.0], [1.2, 0.0, 0.6, -20.0], [-0.9, 0.0, 0.8, 5.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("ending", ["nii.gz", "nii"])
def test_voxels_and_affine_come_back(tmp_path, ending):
    mask = np.random.default_rng(0).integers(0, 4, (3, 5, 4), dtype=np.uint8)
    path = save_mask(mask, make_case(OBLIQUE), tmp_path / "new" / f"case.{ending}")
    read = nib.load(path)
    assert read.shape == (4, 5, 3) and read.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, mask)
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-6)
    assert read.header.get_xyzt_units()[0] == "mm" and int(read.header["sform_code"]) > 0
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing temporary is left"


def test_without_an_affine_the_spacing_places_the_mask(tmp_path):
    path = save_mask(np.zeros((3, 5, 4), np.uint8), make_case(), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nib.load(path).affine, np.diag([1.25, 1.5, 10.0, 1.0]))
    assert sitk.ReadImage(str(path)).GetSpacing() == (1.25, 1.5, 10.0)


def test_a_real_scan_and_its_mask_share_their_grid(data_root, tmp_path):
    case = acdc(data_root / "acdc").read("patient001")[0]
    path = save_mask(case.label, case, tmp_path / "label.nii.gz")
    saved, scan, truth = nib.load(path), nib.load(case.source), nib.load(case.source.replace(".nii", "_gt.nii"))
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_array_equal(saved.affine, scan.affine)
    assert saved.shape == scan.shape and saved.header.get_zooms() == scan.header.get_zooms()
    for code in ("sform_code", "qform_code"):
        assert saved.header[code] == scan.header[code]
    ours, theirs = sitk.ReadImage(str(path)), sitk.ReadImage(case.source)
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(ours, geometry)(), getattr(theirs, geometry)(), atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), case.label)


def test_a_failed_write_leaves_the_old_mask_and_no_rest(tmp_path, monkeypatch):
    path, mask = tmp_path / "a.nii.gz", np.ones((3, 5, 4), np.uint8)
    save_mask(mask, make_case(), path)
    before = path.read_bytes()

    def half(picture, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(inference.nib, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_mask(0 * mask, make_case(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_same_mask_gives_the_same_bytes(tmp_path, monkeypatch):
    mask = np.ones((3, 5, 4), np.uint8)
    first = save_mask(mask, make_case(), tmp_path / "a.nii.gz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert save_mask(mask, make_case(), tmp_path / "b.nii.gz").read_bytes() == first


@pytest.mark.parametrize(("mask", "case", "name", "error", "message"), [
    (np.zeros((5, 3, 4), np.uint8), make_case(), "a.nii", ValueError,
     r"patient001_frame01: mask: found shape \(5, 3, 4\), expected the scan's \(3, 5, 4\)"),
    (np.zeros((3, 5, 4), np.int64), make_case(), "a.nii", TypeError,
     "patient001_frame01: mask: found int64, expected uint8"),
    (np.zeros((3, 5, 4), np.uint8), make_case(spacing_mm=None), "a.nii", ValueError,
     "patient001_frame01: found neither affine nor spacing_mm"),
    (np.zeros((3, 5, 4), np.uint8), make_case(), "a.png", ValueError,
     r"path: found a.png, expected a name that ends in .nii or .nii.gz"),
])
def test_masks_that_do_not_fit_are_refused(tmp_path, mask, case, name, error, message):
    with pytest.raises(error, match=message):
        save_mask(mask, case, tmp_path / name)
    assert not list(tmp_path.iterdir())
