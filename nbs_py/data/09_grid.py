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
# > Which voxel of a file is which place in the patient: axes that are exchanged, reversed, tilted, and the way back.
#
# **The question.** Where does a voxel lie? A file stores a box of numbers, and a scan may be stored in 48 ways: three
# axes in any order, each in either direction. Every viewer shows all of them alike. A network does not: to it they are
# 48 different organs.

# %%
#| default_exp data.grid

# %%
#| export
from dataclasses import dataclass, replace
from functools import cached_property

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import axcodes2ornt, io_orientation
from nibabel.spatialimages import SpatialImage

# %%
import os
from itertools import permutations, product
from pathlib import Path

from ipywidgets import interact

from attenscribble.book import cost, draw, exercise, panels
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
# One heart in three files: as a scanner stores it, with axes exchanged and reversed, and tilted by 20°. Above, a slice
# of each file as it lies there. Below, what this chapter makes of them: one and the same. (`Grid` comes from the
# finished module; the chapter builds it.)

# %%
from attenscribble.data.grid import Grid

heart = next(phantom(patients=1, seed=2, side=72, slices=6).cases()).image
FILES = {"as scanned": file_of(heart), "axes exchanged, reversed": file_of(heart, ((2, 1), (0, -1), (1, -1))),
         "tilted by 20°": file_of(heart, degrees=20)}

def plot_files(files):
    "Above: the middle of each file's last axis, as it lies there. Below: the case's middle slice."
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
# | $A$, $A'$ | the header's, `Grid.affine` | 4×4 | mm a voxel |
# | $a(c)$ | `axes`, for z, y, x | 3 | axis of the file |
# | $\pm$ | `flips`, for z, y, x | 3 | yes or no |
# | $n$ | `shape` | 2 or more | voxels |

# %% [markdown]
# **Which way to choose?** Slices lie across the axis with the largest spacing, where the scanner saw least; equal
# spacings mean axial. Within a slice, columns run to the patient's left and rows to the back or the feet, as
# radiologists look at it. A tilted axis counts as the nearest of the three. A header without coordinates is taken as it
# lies.

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
# **What breaks.** Half a million voxels, one at a time. NumPy turns and reverses axes without touching a voxel.

# %%
assert take_naive(np.array([7, 9]).reshape(2, 1, 1), (2, 1, 0), (False, False, True)).ravel().tolist() == [9, 7]

# %%
#| export
PLANES = ("sagittal", "coronal", "axial")  # slices across the patient's x, y, z
# what a header says about space, beside pixdim
_PLACE = ("dim_info", "qform_code", "sform_code", "xyzt_units", *(f"quatern_{k}" for k in "bcd"),
          *(f"{kind}_{k}" for kind in ("qoffset", "srow") for k in "xyz"))


def three_axes(
    shape: tuple[int, ...],  # of a file
) -> tuple[int, ...]:  # of three lengths, where that loses nothing; else as it is
    "A third axis for a single slice, and no axes of length 1 past the third."
    return (*shape, 1)[:3] if len(shape) == 2 else shape[:3] if set(shape[3:]) == {1} else shape


def placed(
    header: Nifti1Header,
) -> bool:
    "Whether a header has a coordinate system."
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


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
        cls,
        scan: SpatialImage,
        axis: str = "auto",  # "auto", one of PLANES, the file's "0", "1", "2"; "stored": as it lies; "LPS" …
    ) -> "Grid":
        """The grid of a file, slices across `axis`; columns run to the patient's left (or back), rows to back or feet.

        Three letters say where x, y and z run to, whatever the spacing; a header without coordinates is then taken as
        stored."""
        shape, grid, codes = three_axes(scan.shape), cls(scan.header, scan.shape), axis.isupper()
        if axis == "stored" or (codes and not placed(scan.header)):
            return grid
        toward, sign = np.array([0, 1, 2]), np.array([-1, -1, 1])  # as it lies, if the header does not say
        if placed(scan.header) and np.isfinite(ornt := io_orientation(scan.affine)).all():
            toward, sign = ornt[:, 0].astype(int), ornt[:, 1]  # for each axis of the file: the patient's x, y or z, ±
        if codes:
            wanted = axcodes2ornt(axis)[::-1]  # for z, y, x
            axes = tuple(int(np.argmax(toward == patient)) for patient, _ in wanted)
            flips = tuple(bool(sign[a] != s) for a, (_, s) in zip(axes, wanted, strict=True))
            return replace(grid, axes=axes, flips=flips, plane=axis)
        if axis in PLANES:
            across = int(np.argmax(toward == PLANES.index(axis)))
        elif axis != "auto":
            across = int(axis)
        elif shape.count(1) == 1:
            across = shape.index(1)
        else:
            mm = np.array(grid._zooms)
            across = max(np.flatnonzero(mm >= 0.99 * mm.max()), key=lambda a: toward[a])
        axes = (int(across), *sorted({0, 1, 2} - {across}, key=lambda a: -toward[a]))
        flips = (bool(sign[across] < 0), *(bool(sign[a] > 0) for a in axes[1:]))
        return replace(grid, axes=axes, flips=flips, plane=PLANES[toward[across]])

    @property
    def _zooms(self) -> list[float]:
        "Voxel size along the file's axes in mm; 1 across a lone slice that has none."
        mm = [*map(float, self.header.get_zooms()), 1.0][:3]
        return [1.0 if n == 1 and not size > 0 else size for n, size in zip(three_axes(self.shape), mm, strict=True)]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        "Voxel size (z,y,x)."
        return tuple(self._zooms[axis] for axis in self.axes)

    @cached_property
    def affine(self) -> np.ndarray:  # 4×4
        "Voxel (x,y,z) of the case → mm: A' = AM."
        move = np.zeros((4, 4))
        move[3, 3] = 1
        for column, (axis, flip) in enumerate(zip(self.axes[::-1], self.flips[::-1], strict=True)):
            move[axis, column] = -1 if flip else 1
            move[axis, 3] = three_axes(self.shape)[axis] - 1 if flip else 0
        return self.header.get_best_affine() @ move

    def take(
        self,
        stored: np.ndarray,  # as in the file, any number of axes that `three_axes` takes
    ) -> np.ndarray:  # [Z,Y,X], a view
        "From the file's order to the book's."
        volume = stored.reshape(three_axes(stored.shape)).transpose(self.axes)
        return volume[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def picture(
        self,
        volume: np.ndarray,  # [Z,Y,X], or [C,Z,Y,X] for a file with a fourth axis
    ) -> SpatialImage:
        "What can be written beside the file: its shape and place, the volume's type, nothing else of its header."
        back = np.argsort(self.axes)
        parts = [part[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)].transpose(back)
                 for part in volume.reshape(-1, *volume.shape[-3:])]
        data = np.stack(parts, -1) if volume.ndim == 4 else parts[0].reshape(self.shape)
        kind = nib.Nifti2Image if isinstance(self.header, nib.Nifti2Header) else nib.Nifti1Image
        header = kind.header_class()
        for name in _PLACE:
            header[name] = self.header[name]
        header["pixdim"][:4] = self.header["pixdim"][:4]
        header.set_data_dtype(volume.dtype)
        return kind(np.ascontiguousarray(data), None, header)


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
# At which angle does an axis change its name? The file does not change; what its last axis is called does.

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
# Colour: number of the slice; to the right: towards the patient's right; up: the head. Between 44° and 46° nothing
# happens to the patient, but "axial" becomes "sagittal". Who scans at such angles names the axis himself.
#
# ## Real data: how ACDC lies
#
# The orientation that the first patient's header claims. It shows one header; it does not show that the header is
# right.

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
# **3. Break.** Return two files of equal shape and equal affine up to one sign that hold different patients to a
# network that reads `dataobj`, and the same one to a viewer.

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
# Exported: `Grid`, whose `take` leads from a file to [Z,Y,X] and whose `picture` leads back; `three_axes`, `placed`.
# What may surprise: a scan has 48 equally good files. [The next chapter](10_scans.ipynb) opens one.
