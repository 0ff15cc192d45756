# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Space
#
# > Which voxel of a file is which place in the patient: axes that are exchanged, reversed or tilted, and the way back.
#
# Where in the patient does a voxel of a file lie? One scan can be stored in 48 ways (three axes in any order, each in
# either direction), and a network takes them for 48 different organs, although every viewer shows them alike. This
# chapter reads the directions of a file's axes from its header, brings every scan into one order, and writes results
# back in the order of the file.

# %%
#| default_exp data.grid

# %%
#| export
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.orientations import axcodes2ornt, io_orientation

from attenscribble.basics.errors import DataError

# %%
import os
from itertools import permutations, product
from pathlib import Path

from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import draw, panels
from attenscribble.basics.errors import refused
from attenscribble.data.phantom import phantom

# %%
BODY = np.diag([-1.5, -1.5, 10, 1])  # a scanner's usual voxel (x,y,z) → mm: x to the left, y to the back, z up

def tilt(degrees):
    "A turn about the patient's y axis, in mm."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])

def file_of(volume, ornt=((0, 1), (1, 1), (2, 1)), degrees=0):
    "[Z,Y,X] as a file: axis i of (x,y,z) becomes ornt[i][0], reversed if ornt[i][1] is −1; the patient lies tilted."
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), tilt(degrees) @ BODY)
    return nib.Nifti1Image.from_bytes(scan.as_reoriented(np.array(ornt)).to_bytes())


# %% [markdown]
# ## The answer, as a picture
#
# One heart in three files: as a scanner stores it, with axes exchanged and reversed, and tilted by 20°. The upper row
# shows a slice of each file as it is stored. The lower row shows what this chapter makes of them: three times the same
# slice. (`Grid` comes from the finished module; the chapter builds it.)

# %%
from attenscribble.data.grid import Grid

heart = next(phantom(patients=1, seed=2, side=72, slices=6).cases()).image
FILES = {"as scanned": file_of(heart), "axes exchanged, reversed": file_of(heart, ((2, 1), (0, -1), (1, -1))),
         "tilted by 20°": file_of(heart, degrees=20)}


# %%
def plot_files(files):
    "Above: the middle of each file's last axis, as it is stored. Below: the case's middle slice."
    _, axes = panels(2 * len(files), columns=len(files), size=2.2)
    for (title, scan), above, below in zip(files.items(), axes, axes[len(files):], strict=False):
        stored = np.asarray(scan.dataobj)
        draw(above, stored[..., stored.shape[2] // 2].T, title=f"{title}\nfile: {'×'.join(map(str, stored.shape))}")
        above.set_aspect(scan.header.get_zooms()[1] / scan.header.get_zooms()[0])
        case = Grid.of(scan).take(stored)
        draw(below, case[len(case) // 2], title=f"case: {'×'.join(map(str, case.shape))}")

plot_files(FILES)


# %% [markdown]
# ## Two matrices
#
# A file's affine $A$ sends its voxel $(i,j,k)$ to millimetres towards the patient's right, front and head. We choose
# which axes of the file become $x$, $y$, $z$ and which of them to reverse. That is a matrix $M$ from our voxel to the
# file's:
#
# $$\begin{pmatrix}i\\j\\k\\1\end{pmatrix}=M\begin{pmatrix}x\\y\\z\\1\end{pmatrix},\qquad A'=AM,\qquad
# M_{a(c),c}=\pm1,\quad M_{a(c),4}=\begin{cases}n_{a(c)}-1&\text{reversed}\\0\end{cases}$$

# %% [markdown]
# | symbol | variable | shape | unit |
# |---|---|---|---|
# | $A$, $A'$ | `affine_mm` of the header, `Grid.affine` | 4×4 | mm a voxel |
# | $a(c)$ | `axes`, for z, y, x | 3 | axis of the file |
# | $\pm$ | `flips`, for z, y, x | 3 | yes or no |
# | $n$ | `shape` | 2 or more | voxels |

# %% [markdown]
# **Which axes to choose?** Slices lie across the axis with the largest spacing, where the scanner's resolution is
# lowest; if all spacings are equal, slices are axial. Within a slice, columns run to the patient's left and rows to the
# back or the feet, as radiologists look at it. A tilted axis counts as the nearest of the three. A file whose header
# has no coordinate system is taken as it is stored.

# %%
def take_naive(stored, axes, flips):
    "Voxel by voxel, as the equation says; axes and flips for z, y, x."
    case = np.zeros([stored.shape[a] for a in axes], stored.dtype)
    for zyx in np.ndindex(case.shape):
        place = [0, 0, 0]
        for axis, flip, at in zip(axes, flips, zyx, strict=True):
            place[axis] = stored.shape[axis] - 1 - at if flip else at
        case[zyx] = stored[tuple(place)]
    return case


# %% [markdown]
# **By hand.** Two voxels along $i$, at 0 and 3 mm, values 7 and 9. Reversed, the case reads 9, 7; its first voxel lies
# where the file's last one did, at $(2-1)\cdot3=3$ mm, and a step is −3 mm.
#
# **Where it breaks.** A scan has about half a million voxels, and the loop visits them one by one. NumPy exchanges and
# reverses axes without copying a single voxel.

# %%
assert take_naive(np.array([7, 9]).reshape(2, 1, 1), (2, 1, 0), (False, False, True)).ravel().tolist() == [9, 7]


# %% [markdown]
# ## What the header says
#
# A single slice gets a third axis of length 1. A header gives coordinates only if its sform or its qform is set.

# %%
#| export
def three_axes(
    shape: tuple[int, ...],  # of a file
) -> tuple[int, ...]:  # of three lengths, where that loses nothing; else as it is
    "A third axis for a single slice, and no axes of length 1 past the third."
    return (*shape, 1)[:3] if len(shape) == 2 else shape[:3] if set(shape[3:]) == {1} else shape


# %%
#| export
def placed(
    header: Nifti1Header,  # of a file
) -> bool:  # False: only voxel sizes are known, no directions
    "Whether a header has a coordinate system."
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


# %%
#| export
def _directions(scan: Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    "For each axis of a file: the patient's axis it runs along (0, 1, 2: x, y, z); 1 if with it, −1 if against it."
    if placed(scan.header) and np.isfinite(ornt := io_orientation(scan.affine)).all():
        return ornt[:, 0].astype(int), ornt[:, 1]
    return np.array([0, 1, 2]), np.array([-1, -1, 1])  # as it is stored, if the header does not say


# %% [markdown]
# ## Millimetres, and one source of them
#
# A header counts in metres, millimetres or micrometres, and names the unit in `xyzt_units`; this book counts in mm. Where
# it names none, mm are meant, as other programs take it. One kind of contradiction has a known reason: programs such as
# the one that wrote ACDC's release store an sform of −1, −1, 1 that says where axes run and leaves the sizes to
# `pixdim`; that is how it is read. The size of a voxel stands in the header twice: in `pixdim`, and
# as the length of the affine's columns. **The affine counts**, since it is what places a mask on its scan. Where the
# two differ by more than a hundredth, one of them is wrong and nobody can tell which: the header is refused.

# %%
#| export
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of xyzt_units, in mm: not named, metre, mm, micrometre


def mm_per_unit(
    header: Nifti1Header,  # of a file
) -> float:  # by which its lengths become mm; 1 where no unit is named
    "The header's unit of length. Raises DataError for a code that stands for none."
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS:
        raise DataError("xyzt_units", f"the code {code} for lengths", "1 (metre), 2 (mm), 3 (micrometre) or 0 (mm)")
    return _UNITS[code]


# %%
#| export
_NO_SIZES = np.diag([-1.0, -1, 1, 1])  # ITK's unit directions in NIfTI's coordinates, no voxel size, no offset


def affine_mm(
    header: Nifti1Header,  # of a file
) -> np.ndarray:  # [4,4]: the file's voxel (i,j,k) → mm
    "The affine of a file in mm, whatever unit its header counts in; pixdim gives the sizes that an sform left out."
    affine = np.array(header.get_best_affine(), float)
    if header["sform_code"] > 0 and np.array_equal(affine, _NO_SIZES):
        affine = _NO_SIZES * [*np.abs(header["pixdim"][1:4]), 1.0]
    affine[:3] *= mm_per_unit(header)
    return affine


# %%
#| export
def zooms_mm(
    header: Nifti1Header,  # of a file
    shape: tuple[int, ...],  # of its voxels
) -> list[float]:  # along the file's three axes
    "Voxel sizes in mm: the affine's where a header has one, else pixdim's; 1 across a lone slice that has none."
    mm = [*(float(size) * mm_per_unit(header) for size in header.get_zooms()), 1.0][:3]
    columns = np.linalg.norm(affine_mm(header)[:3, :3], axis=0) if placed(header) else mm
    sizes = three_axes(shape)
    if len(sizes) == 3 and placed(header):  # pixdim is the rounder number where both say the same
        mm = [size if n == 1 or abs(size - long) <= 1e-5 * long else float(long)
              for n, size, long in zip(sizes, mm, columns, strict=True)]
    return [1.0 if n == 1 and not size > 0 else size for n, size in zip(sizes, mm, strict=True)]


# %% [markdown]
# Fields that contradict each other, or that no scanner can have written, are refused by name. nibabel would repair some
# of them without a word: a size of 0 becomes 1.

# %%
#| export
_SMALLEST_MM, _LARGEST_MM = 1e-6, 1e4  # of a voxel: a nanometre, ten metres
_FARTHEST_MM = 1e7  # of a voxel from the scanner's centre
_CONTRADICTION = 0.01  # relative: far above rounding, far below what a distance in mm may be wrong by


# %%
#| export
def check_geometry(
    header: Nifti1Header,  # as it is stored, before a library repairs it
) -> None:
    "Raises DataError, naming the field, for lengths that are none, or that contradict each other."
    for name in ("sform_code", "qform_code"):
        if not 0 <= int(header[name]) <= 5:
            raise DataError(name, int(header[name]), "a code from 0 to 5")
    shape, unit = header.get_data_shape(), mm_per_unit(header)
    sizes = [(k, float(header["pixdim"][k])) for k, n in enumerate(shape[:3], 1)
             if n != 1 or not header["pixdim"][k] == 0]  # a lone slice may have no thickness
    for k, size in sizes:
        if not _SMALLEST_MM <= size * unit <= _LARGEST_MM:
            raise DataError(f"pixdim[{k}]", f"a voxel size of {size * unit:g} mm",
                            f"{_SMALLEST_MM:g} to {_LARGEST_MM:g} mm; write the header anew with the true size")
    if placed(header):
        _check_affine(header, shape, sizes)


# %%
#| export
def _check_affine(header: Nifti1Header, shape: tuple[int, ...], sizes: list[tuple[int, float]]) -> None:
    "Raise DataError for an affine that places nothing, and for one that contradicts pixdim."
    name = "srow_x, srow_y, srow_z" if header["sform_code"] > 0 else "quatern_b … qoffset_z"
    try:
        affine = affine_mm(header)
    except (ValueError, ArithmeticError, nib.spatialimages.HeaderDataError) as error:
        raise DataError(name, f"no rotation ({error})", "a quaternion of length 1") from None
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.abs(affine).max() < _FARTHEST_MM):
        raise DataError(name, affine[:3].tolist(), f"lengths below {_FARTHEST_MM:g} mm")
    if not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * columns.prod():
        raise DataError(name, affine[:3].tolist(), "three directions")
    for k, size in sizes:
        mm, long = size * mm_per_unit(header), float(columns[k - 1])
        if shape[k - 1] > 1 and abs(mm - long) > _CONTRADICTION * long:
            raise DataError(f"pixdim[{k}]", f"{mm:g} mm, and {long:g} mm in {name}",
                            "the same voxel size in both; write the header anew with the true one")


# %% [markdown]
# **By hand.** 1,500 µm are 1.5 mm. A column (0, 3, 4) of the affine is 5 mm long; a `pixdim` of 5.04 is rounding, one of
# 4.5 contradicts it.

# %%
def header_of(sizes, columns, unit="mm"):
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header["pixdim"][1:4] = sizes
    header.set_xyzt_units(unit)
    header.set_sform(np.diag([*columns, 1]), 1)
    return header

assert np.allclose(zooms_mm(header_of((1500, 1500, 9000), (1500, 1500, 9000), "micron"), (4, 5, 6)), (1.5, 1.5, 9))
check_geometry(header_of((1.5, 1.5, 5.04), (1.5, 1.5, 5)))
for wrong, words in ((4.5, "4.5 mm, and 1.5 mm in srow_x"), (0, "size of 0 mm"), (-1.5, "-1.5"), (np.inf, "inf"),
                     (np.nan, "nan"), (1e-30, "1e-30")):
    print(refused(lambda wrong=wrong: check_geometry(header_of((1.5, wrong, 9), (1.5, 1.5, 9))), "pixdim[2]", words))

# %% [markdown]
# ## Which axis is which
#
# There are two ways to ask: by the direction of the slices, or by three letters such as "LPS" that say where x, y and
# z run to (left, posterior, superior).

# %%
#| export
PLANES = ("sagittal", "coronal", "axial")  # slices across the patient's x, y, z


def _slice_axis(scan: Nifti1Image, axis: str, toward: np.ndarray) -> int:
    "The file's axis that slices lie across; `toward`: the patient axis of each."
    if axis in PLANES:
        return int(np.argmax(toward == PLANES.index(axis)))
    if axis != "auto":
        return int(axis)
    shape = three_axes(scan.shape)
    if shape.count(1) == 1:
        return shape.index(1)
    mm = np.array(zooms_mm(scan.header, scan.shape))
    return int(max(np.flatnonzero(mm >= 0.99 * mm.max()), key=lambda a: toward[a]))  # equal spacings: z first


# %%
#| export
_Axes = tuple[tuple[int, int, int], tuple[bool, bool, bool], str]  # as the last three fields of Grid


def _axes_across(scan: Nifti1Image, axis: str) -> _Axes:
    "The file's axes for z, y, x, which of them to reverse, and the plane, with slices across `axis`."
    toward, sign = _directions(scan)
    across = _slice_axis(scan, axis, toward)
    y, x = sorted({0, 1, 2} - {across}, key=lambda a: -toward[a])
    return (across, y, x), (bool(sign[across] < 0), bool(sign[y] > 0), bool(sign[x] > 0)), PLANES[toward[across]]


# %%
#| export
def _axes_by_letters(scan: Nifti1Image, letters: str) -> _Axes:
    "The file's axes for z, y, x and which of them to reverse, so that x, y, z run to where the letters say."
    toward, sign = _directions(scan)
    wanted = axcodes2ornt(letters)[::-1]  # for z, y, x
    axes = tuple(int(np.argmax(toward == patient)) for patient, _ in wanted)
    flips = tuple(bool(sign[a] != s) for a, (_, s) in zip(axes, wanted, strict=True))
    return cast(_Axes, (axes, flips, letters))  # three letters, three of each


# %%
#| export
def _chosen_axes(scan: Nifti1Image, axis: str) -> _Axes:
    "Axes, flips and plane of a file; without coordinates, letters mean nothing and it is taken as it is stored."
    if axis == "stored" or (axis.isupper() and not placed(scan.header)):
        return Grid.axes, Grid.flips, Grid.plane
    return _axes_by_letters(scan, axis) if axis.isupper() else _axes_across(scan, axis)


# %% [markdown]
# ## There and back
#
# The matrix $M$, a view with reversed axes, and a header that keeps the geometry and drops the rest, such as a
# patient's name in its comments.

# %%
#| export
def _voxel_matrix(shape: tuple[int, ...], axes: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    "M, 4×4: from the case's voxel (x,y,z) to the file's (i,j,k)."
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for column, (axis, flip) in enumerate(zip(axes[::-1], flips[::-1], strict=True)):
        matrix[axis, column] = -1 if flip else 1
        matrix[axis, 3] = three_axes(shape)[axis] - 1 if flip else 0
    return matrix


# %%
#| export
def _reverse(volume: np.ndarray, flips: tuple[bool, ...]) -> np.ndarray:
    "A view with some axes reversed."
    return volume[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


# %%
#| export
def _as_stored(volume: np.ndarray, shape: tuple[int, ...], axes: tuple, flips: tuple) -> np.ndarray:
    "From [Z,Y,X] or [C,Z,Y,X] back to the file's order; channels become its last axis."
    parts = [_reverse(part, flips).transpose(np.argsort(axes)) for part in volume.reshape(-1, *volume.shape[-3:])]
    return np.stack(parts, -1) if volume.ndim == 4 else parts[0].reshape(shape)


# %%
#| export
# what a header says about space, beside pixdim
_PLACE = ("dim_info", "qform_code", "sform_code", "xyzt_units", *(f"quatern_{k}" for k in "bcd"),
          *(f"{kind}_{k}" for kind in ("qoffset", "srow") for k in "xyz"))


def _geometry_only(header: Nifti1Header) -> Nifti1Header:
    "A new header of the same NIfTI version with the geometry of this one and nothing else of it."
    bare = (nib.Nifti2Header if isinstance(header, nib.Nifti2Header) else Nifti1Header)()
    for name in _PLACE:
        bare[name] = header[name]
    bare["pixdim"][:4] = header["pixdim"][:4]
    return bare


# %%
#| export
def _image(data: np.ndarray, header: Nifti1Header) -> Nifti1Image:
    "A NIfTI image of some voxels, with the geometry of a header and the voxels' type."
    bare = _geometry_only(header)
    bare.set_data_dtype(data.dtype)
    kind = nib.Nifti2Image if isinstance(bare, nib.Nifti2Header) else nib.Nifti1Image
    return kind(np.ascontiguousarray(data), None, bare)


# %% [markdown]
# `Grid` puts these together. `take` leads from the file to the case, `picture` leads back.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Grid:
    "How a file stores a volume: which of its axes are z, y and x, which of them run backwards, where it lies."

    header: Nifti1Header  # of the file; only its geometry is ever written again
    shape: tuple[int, ...]  # of the file, two axes or more
    axes: tuple[int, int, int] = (2, 1, 0)  # of the file, for z, y, x
    flips: tuple[bool, bool, bool] = (False, False, False)  # whether z, y, x run against the file's axis
    plane: str = "stored"  # what `of` has to be told to slice another file alike

    @classmethod
    def of(
        cls, scan: Nifti1Image,  # an opened file
        axis: str = "auto",  # "auto", a name of PLANES, "0", "1", "2", "stored"; "LPS" …: where x, y, z run to
    ) -> "Grid":  # of that file
        "The grid of a file, sliced across `axis`; columns run to the patient's left (or back), rows to back or feet."
        return cls(scan.header, scan.shape, *_chosen_axes(scan, axis))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        "Voxel size (z,y,x)."
        z, y, x = (zooms_mm(self.header, self.shape)[axis] for axis in self.axes)
        return z, y, x

    @cached_property
    def affine(self) -> np.ndarray:
        "[4,4]: voxel (x,y,z) of the case → mm, A' = AM."
        return affine_mm(self.header) @ _voxel_matrix(self.shape, self.axes, self.flips)

    def take(
        self, stored: np.ndarray,  # as in the file, any number of axes that `three_axes` takes
    ) -> np.ndarray:  # [Z,Y,X], a view
        "From the file's order to the book's."
        return _reverse(stored.reshape(three_axes(stored.shape)).transpose(self.axes), self.flips)

    def picture(
        self, volume: np.ndarray,  # [Z,Y,X], or [C,Z,Y,X] for a file with a fourth axis
    ) -> Nifti1Image:  # NIfTI of the file's version, in memory
        "What can be written beside the file: its shape and place, the volume's type, nothing else of its header."
        return _image(_as_stored(volume, self.shape, self.axes, self.flips), self.header)


# %% [markdown]
# ## Equal, and there and back
#
# In each of the 48 ways to store a block: the same case comes out; the naive form agrees; every voxel keeps its
# millimetres; and what is written has the file's own order, affine and codes, to the last bit.

# %%
block = np.random.default_rng(0).permutation(60).reshape(3, 4, 5).astype(np.int16)
for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
    scan = file_of(block, tuple(zip(order, signs, strict=True)), degrees=15)
    grid, stored = Grid.of(scan), np.asarray(scan.dataobj)
    np.testing.assert_array_equal(grid.take(stored), block)
    np.testing.assert_array_equal(take_naive(stored, grid.axes, grid.flips), block)
    np.testing.assert_allclose(grid.affine, tilt(15) @ BODY, atol=1e-4)
    written = nib.Nifti1Image.from_bytes(grid.picture(block).to_bytes())
    np.testing.assert_array_equal(written.dataobj, stored)
    assert written.header["sform_code"] == scan.header["sform_code"] and (written.affine == scan.affine).all()
    codes = "".join(nib.aff2axcodes(scan.affine))  # as another scanner would have it: nothing to turn
    np.testing.assert_array_equal(Grid.of(scan, codes).take(stored), stored.T)

# %%
stored = np.asarray(FILES["axes exchanged, reversed"].dataobj)
grid = Grid.of(FILES["axes exchanged, reversed"])
print(f"voxel by voxel: {cost(lambda: take_naive(stored, grid.axes, grid.flips))}")
print(f"renaming axes:  {cost(lambda: np.ascontiguousarray(grid.take(stored)))}")


# %% [markdown]
# ## Slide the tilt
#
# At which angle does an axis change its name? The voxels stay the same; what their last axis is called changes.

# %%
def plot_tilt(angles):
    "One file, tilted: its voxels in the patient's x–z plane, and the plane that its slices are counted as."
    _, axes = panels(len(angles), size=2.3)
    for axis, degrees in zip(axes, angles, strict=True):
        scan = file_of(heart, degrees=degrees)
        x, z = np.meshgrid(np.arange(0, 72, 6), np.arange(6))
        mm = scan.affine @ np.stack([x.ravel(), 0 * x.ravel(), z.ravel(), 0 * x.ravel() + 1])
        axis.scatter(mm[0], mm[2], c=z.ravel(), s=9, cmap="viridis")
        axis.set_aspect("equal")
        axis.set_title(f"{degrees}°: {Grid.of(scan).plane}", fontsize=9)

plot_tilt((0, 20, 44, 46))

# %%
interact(lambda degrees=20: plot_tilt((degrees,)), degrees=(0, 90));

# %% [markdown]
# The colour is the slice's number; right in the picture is the patient's right, up is the head. Between 44° and 46° the
# patient is the same, but the slices are called "sagittal" and no longer "axial". For scans at such angles, name the
# axis yourself.
#
# ## Real data: how ACDC is stored
#
# The orientation that the first patient's header claims. One header shows that the file is understood; it does not
# show that the header is right.

# %%
path = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training/patient001/patient001_frame01.nii.gz"
if path.is_file():
    scan = nib.load(path)
    grid = Grid.of(scan)
    print(f"file {scan.shape}, axes towards {''.join(nib.aff2axcodes(scan.affine))}; slices {grid.plane}, "
          f"(z,y,x) from the file's axes {grid.axes}, reversed {grid.flips}, {grid.spacing_mm} mm")
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** A file has spacings of 0.5, 3.0 and 0.5 mm along its axes, which run to the patient's left, back and
# head. What are its slices?

# %%
def check_plane(answer):
    scan = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-0.5, -3.0, 0.5, 1]))
    assert answer() == Grid.of(scan).plane

def my_plane():
    ...  # "sagittal", "coronal" or "axial"

exercise(check_plane, my_plane, solution=lambda: "coronal")


# %% [markdown]
# **2. Implement** the affine of a volume whose first axis was reversed: every voxel keeps its place in mm.

# %%
def check_reversed(reverse):
    affine = np.array([[-1.5, 0, 0, 10], [0, 1.2, 0.4, 0], [0, -0.4, 1.2, 5], [0, 0, 0, 1]])
    np.testing.assert_allclose(reverse(affine, 8) @ [0, 2, 3, 1], affine @ [7, 2, 3, 1])
    np.testing.assert_allclose(reverse(affine, 8) @ [6, 0, 0, 1], affine @ [1, 0, 0, 1])

def my_reversed(affine, length):
    return affine * [-1, 1, 1, 1]  # improve this

exercise(check_reversed, my_reversed,
         solution=lambda affine, length: affine @ [[-1, 0, 0, length - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


# %% [markdown]
# **3. Break.** Return two files of equal shape, with affines that differ only in one sign, which a viewer shows as the
# same patient and a network that reads `dataobj` as two.

# %%
def check_mirror(pair):
    a, b = pair()
    assert a.shape == b.shape and (np.asarray(a.dataobj) != np.asarray(b.dataobj)).any()
    np.testing.assert_array_equal(Grid.of(a).take(np.asarray(a.dataobj)), Grid.of(b).take(np.asarray(b.dataobj)))

def my_mirror():
    return file_of(block), file_of(block)  # improve this

exercise(check_mirror, my_mirror, solution=lambda: (file_of(block), file_of(block, ((0, -1), (1, 1), (2, 1)))))

# %% [markdown]
# ## Recap
#
# Exported: `Grid`, whose `take` leads from a file to [Z,Y,X] and whose `picture` leads back; `affine_mm` and `zooms_mm`,
# which know the header's unit; `check_geometry`; `three_axes`, `placed` and the names of the `PLANES`. What may surprise:
# one scan can be stored in 48 equally correct ways, and a header says the size of a voxel twice.
# [The next chapter](11_scans.ipynb) opens one.
