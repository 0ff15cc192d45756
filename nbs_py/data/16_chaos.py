# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CHAOS
#
# > From a folder of DICOM slices to a volume: order, distance, place.
#
# How do the slices of a DICOM folder become a volume? A scanner writes one file per slice, and both obvious guesses,
# the order of the file names and the thickness of the slices, can be wrong: then the body is out of order and every
# distance in millimetres is false. This chapter reads order, distance and place from the files' headers, and opens
# the MR data set CHAOS with them.

# %%
#| default_exp data.chaos

# %%
#| export
import hashlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

# %%
#| export
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import get_decoder  # type: ignore[attr-defined]  # its documented place, not in __all__
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from attenscribble.basics.errors import DataError, one_of
from attenscribble.data.grid import Grid
from attenscribble.data.scans import (
    Case, Dataset, _check_same_grid, already_cut, check_claim, check_memory, file_hashes, in_folder, is_nifti,
    read_nifti, scale_intensities, stem)
from attenscribble.data.simulation import simulate

# %%
import os
import shutil
import tempfile

from ipywidgets import interact
from pydicom.uid import JPEGLosslessSV1, RLELossless
from scipy.ndimage import gaussian_filter

from attenscribble.basics import errors
from attenscribble.basics.checking import exercise
from attenscribble.basics.drawing import class_legend, draw, panels
from attenscribble.data.phantom import blob_level, paint

# %% [markdown]
# ## The answer, as a picture
#
# An abdomen, drawn with the phantom's brushes: liver, two kidneys, spleen, fat around them. Its slices are 5 mm thick
# and 8 mm apart; between them nothing was measured. Each becomes one DICOM file. The function that writes it is
# exported, because the tests need files with every possible fault: `fields` sets or removes any entry of the header.

# %%
#| export
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_MR = {"Modality": "MR", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
       "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0}


# %%
#| export
def write_slice(
    path: Path,  # of the new file; its folder is made if it is missing
    pixels: np.ndarray,  # [Y,X] in 0 … 65535
    position_mm: Sequence[float],  # (x,y,z) of the first pixel's centre: x grows to the patient's left, y to the back
    *,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),  # direction along a row, then that along a column
    spacing_mm: tuple[float, float] = (1.0, 1.0),  # (y,x)
    **fields: object,  # any other by its DICOM keyword, such as EchoTime=4.6; None leaves one out
) -> Path:  # the file written
    "One MR slice as an uncompressed DICOM file that names no patient: for chapters and tests."
    place = zip(_PLACE, (position_mm, orientation, spacing_mm), strict=True)
    header = _new_header(pixels, {name: [f"{number:.9g}" for number in numbers] for name, numbers in place} | fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


# %%
#| export
def _new_header(pixels: np.ndarray, fields: dict[str, object]) -> Header:
    "A header with pixels and these fields, those of value None left out."
    header = Header()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, generate_uid()
    header.Rows, header.Columns = pixels.shape
    header.PixelData = pixels.astype("<u2").tobytes()
    for name, value in (_MR | fields).items():
        setattr(header, name, value)
    for name in [name for name, value in fields.items() if value is None]:
        delattr(header, name)
    return header


# %%
DISTANCE_MM, THICKNESS_MM, PIXEL_MM, SIDE = 8.0, 5.0, 2.5, 96
ORGANS = (  # class, centre (z,y,x) and half-axes (z,y,x) in mm, counted from the middle; water
    (1, (15, -10, -45), (52, 48, 50), 0.62), (2, (-28, 38, -42), (36, 17, 17), 0.45),
    (3, (-20, 38, 42), (36, 17, 17), 0.45), (4, (22, 18, 72), (34, 28, 18), 0.40))


# %%
def shapes(height_mm):
    "What is painted in one slice, later over earlier: class, centre and half-axes in the slice, water, fat."
    yield 0, (0, 0), (84, 114), 0.02, 0.80  # fat under the skin
    yield 0, (2, 0), (72, 103), 0.30, 0.04  # muscle
    for organ, (z, y, x), (depth, high, wide), water in ORGANS:
        area = 1 - ((height_mm - z) / depth) ** 2  # of the ellipsoid's cut at this height, relative to its largest
        if area > 0:
            high, wide = high * area**0.5, wide * area**0.5
            if organ in (2, 3):  # kidneys lie in fat
                yield 0, (y, x), (high + 6, wide + 6), 0.02, 0.80
            yield organ, (y, x), (high, wide), water, 0.0


# %%
def abdomen(slices=16):
    "Label [Z,Y,X], and how much water and how much fat there is in each voxel, from below to above."
    mm = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    label, water, fat = np.zeros((3, slices, SIDE, SIDE))
    for k in range(slices):
        for organ, centre, (high, wide), wet, greasy in shapes((k - (slices - 1) / 2) * DISTANCE_MM):
            level = blob_level(mm[:, None], mm[None], centre, (wide, high))
            paint(water[k], level, wet, PIXEL_MM), paint(fat[k], level, greasy, PIXEL_MM)
            label[k][level < 0] = organ
    return label.astype(np.uint8), water, fat


# %%
label, water, fat = abdomen()
rng = np.random.default_rng(0)
volume = (1000 * np.hypot(water + fat + rng.normal(0, 0.02, fat.shape), rng.normal(0, 0.02, fat.shape))).astype(int)
POSITIONS_MM = [(-118.75, -118.75, -60 + k * DISTANCE_MM) for k in range(len(volume))]  # from below to above
GEOMETRY = {"spacing_mm": (PIXEL_MM, PIXEL_MM), "SliceThickness": THICKNESS_MM, "EchoTime": 4.6}
data = Path(tempfile.mkdtemp())
folder = data / "slices"
for number, k in enumerate(rng.permutation(len(volume)), 1):
    write_slice(folder / f"IMG-0004-{number:05d}.dcm", volume[k], POSITIONS_MM[k], **GEOMETRY)


# %%
def side_view(axis, stack, distance_mm, title, row=55):
    "One row of all slices, seen from the front: the last slice on top."
    draw(axis, np.minimum(stack[::-1, row] / 900, 1), title=title)
    axis.set_aspect(distance_mm / PIXEL_MM)

by_name = np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir())])
figure, axes = panels(4, size=2.7)
draw(axes[0], volume[7] / 900, outline=label[7], spacing_mm=(PIXEL_MM, PIXEL_MM), title="one slice, seen from below")
side_view(axes[1], by_name, THICKNESS_MM, "from the front: order of names,\nthickness as distance")
side_view(axes[2], volume, THICKNESS_MM, "order of positions,\nthickness as distance")
side_view(axes[3], volume, DISTANCE_MM, "order of positions,\ndistance of positions")
class_legend(figure, ["", "liver", "right kidney", "left kidney", "spleen"])


# %% [markdown]
# Slices are looked at from the feet, so the liver, on the patient's right, is on the left. In the second panel every
# single slice is correct. A network that sees slices one by one would even train on it; but its masks would be written
# in the wrong order, and every distance in millimetres would be wrong.

# %% [markdown]
# ## What a slice says about its place
#
# | symbol | DICOM keyword | shape | meaning, unit |
# |---|---|---|---|
# | $p_k$ | `ImagePositionPatient` | [3] | centre of slice $k$'s first pixel, mm |
# | $r,c$ | `ImageOrientationPatient` | [6] | directions along a row and along a column, length 1 |
# | $\Delta_y,\Delta_x$ | `PixelSpacing` | [2] | from row to row, from column to column, mm |
# | $a,b$ | `RescaleSlope`, `RescaleIntercept` | | intensity = $a\cdot$ stored $+\,b$ |
# | | `SliceThickness` | | thickness of the excited slab, mm: **not** the distance between slices |
# | | `InstanceNumber`, the file's name | | says nothing reliable |

# %% [markdown]
# The normal $n$ is the direction in which the stack grows. The depth $d_k$ of a slice along it gives the order, and the
# first and the last slice give the step $s$ between two:
#
# $$n=r\times c,\qquad d_k=p_k\cdot n,\qquad s=\frac{p_{last}-p_{first}}{Z-1},\qquad
# x(i,j,k)=p_{first}+\Delta_x\,i\,r+\Delta_y\,j\,c+k\,s$$
#
# for voxel $(i,j,k)$ = (column, row, slice) of $Z$ slices. DICOM's $x$ grows to the patient's left and its $y$ to the
# back, NIfTI's to the right and to the front, so the first two rows of the NIfTI affine have the opposite sign.

# %% [markdown]
# **By hand.** Rows to the left, $r=(1,0,0)$, columns to the back, $c=(0,1,0)$: then $n=(0,0,1)$, up. Positions (0, 0,
# 10) and (0, 0, 2) have depths 10 and 2, so the second file comes first, $s=(0,0,8)$, and voxel (1, 0, 1) lies at
# $(\Delta_x,0,10)$. A sagittal stack has $r=(0,1,0)$, $c=(0,0,-1)$, so $n=(-1,0,0)$: it grows to the patient's right,
# and sorting it by $z$ would compare equal numbers.

# %%
def read_naive(folder):
    "Order of names, thickness as distance: what a first script does."
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return np.stack([one.pixel_array for one in slices]), float(slices[0].SliceThickness)

stack, distance_mm = read_naive(folder)
liver_ml = (label == 1).sum() * PIXEL_MM**2 / 1000
assert not np.array_equal(stack, volume) and np.array_equal(np.sort(stack, 0), np.sort(volume, 0))
print(f"liver: {liver_ml * DISTANCE_MM:.0f} ml, with the thickness {liver_ml * distance_mm:.0f} ml")

# %% [markdown]
# ## Reading one slice
#
# Integers stay integers where slope and intercept change nothing. pydicom decodes RLE by itself, baseline JPEG and
# JPEG 2000 with Pillow. Lossless JPEG needs a decoder under the GPL, which this project does not depend on; where it is
# missing, the error names the transfer syntax and what to install.

# %%
#| export
_File = Path | zipfile.Path  # a file or folder, on disk or inside a zip
_Spacing = tuple[float, float, float]  # (z,y,x) in mm
_NEEDED = (*_PLACE, "Rows", "Columns", "PixelData")
_DECODERS = "a decoder (pip install pylibjpeg pylibjpeg-libjpeg) or a copy without compression (gdcmconv --raw)"


# %%
#| export
def _bytes(file: _File) -> bytes:
    "A file's content, of one in a zip after a look at the size that the zip claims."
    if isinstance(file, zipfile.Path):
        entry = file.root.getinfo(file.at)
        check_claim(file, entry.file_size, entry.compress_size)
    return file.read_bytes()


# %%
#| export
def _read_header(file: _File) -> Header:
    "A slice's header, its pixels not yet decoded."
    try:
        header = pydicom.dcmread(BytesIO(_bytes(file)))
        if missing := [name for name in _NEEDED if header.get(name) in (None, "")]:
            raise DataError(file, f"no {', '.join(missing)}", "a slice that says where it lies")
        _check_place(file, header)
        _check_size(file, header)
        _rescaling(file, header)
    except DataError:
        raise
    except Exception as error:  # whatever a library says of it
        raise DataError(file, f"an unreadable file ({type(error).__name__}: {error})", "complete DICOM") from error
    return header


# %%
#| export
def _check_place(file: _File, header: Header) -> None:
    "Raise DataError, naming the field, for numbers that place no slice."
    for name, count in zip(_PLACE, (3, 6, 2), strict=True):
        found = np.array(header[name].value, float)
        if found.shape != (count,) or not (np.abs(found) <= 1e7).all():
            raise DataError(f"{file}: {name}", header[name].value, f"{count} finite numbers")
    if not all(1e-6 <= float(mm) <= 1e4 for mm in header.PixelSpacing):
        raise DataError(f"{file}: PixelSpacing", list(header.PixelSpacing), "two sizes in mm, greater than 0")
    if np.size(np.array(header.get("EchoTime"), float)) > 1:
        raise DataError(f"{file}: EchoTime", header.EchoTime, "one number")


# %%
#| export
def _check_size(file: _File, header: Header) -> None:
    "Raise DataError for more than a slice, and for pixels that the file cannot hold, before they are decoded."
    frames, bits = header.get("NumberOfFrames") or 1, int(header.get("BitsAllocated") or 0)
    if int(frames) != 1:
        raise DataError(f"{file}: NumberOfFrames", frames, "one slice a file")
    packed = header.file_meta.TransferSyntaxUID.is_compressed
    check_claim(file, int(header.Rows) * int(header.Columns) * bits // 8, len(header.PixelData), packed)


# %%
#| export
def _rescaling(file: _File, header: Header) -> tuple[float, float]:
    "Slope and intercept; 1 and 0 where the fields are not there or empty."
    numbers = []
    for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        value = header.get(name)
        numbers.append(float(default if value in (None, "") else value))
        if not np.isfinite(numbers[-1]) or numbers[0] == 0:
            raise DataError(f"{file}: {name}", value, "a finite number, and no slope of 0")
    return numbers[0], numbers[1]


# %%
#| export
def _decode(file: _File, header: Header) -> np.ndarray:
    "Stored values. Raises DataError for pixels that cannot be decoded, here or anywhere."
    try:
        syntax = header.file_meta.TransferSyntaxUID
        able = not syntax.is_compressed or get_decoder(syntax).is_available
        stored = header.pixel_array if able else None
    except Exception as error:  # whatever a library says of it
        raise DataError(file, f"pixels stored as {header.file_meta.TransferSyntaxUID.name} that cannot be decoded "
                        f"({type(error).__name__}: {error})", "complete pixels") from error
    if stored is None:
        raise DataError(file, f"pixels stored as {syntax.name} ({syntax}), which nothing here can decode", _DECODERS)
    return stored


# %%
#| export
def _pixels(file: _File, header: Header) -> np.ndarray:
    "[Y,X] intensities: integers where the rescaling changes nothing, else float64."
    (slope, intercept), stored = _rescaling(file, header), _decode(file, header)
    shape, colours = (header.Rows, header.Columns), header.get("PhotometricInterpretation")
    if stored.shape != shape or colours != "MONOCHROME2":
        raise DataError(file, f"{colours} pixels of shape {stored.shape}", f"one slice, MONOCHROME2, of shape {shape}")
    return stored if (slope, intercept) == (1, 0) else slope * stored + intercept


# %% [markdown]
# ## Reading a series
#
# The files of one folder have to agree in size, orientation and echo time, each place has to be taken once, and all
# gaps have to be alike. A missing slice doubles a gap; if one is missing at an end, a label remains without a slice.
# The number of the series proves little: in CHAOS both echoes of a patient share it, and some programs that remove
# names give each file a number of its own.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Series:
    "Slices of one scan, in the order of their place along the normal."

    volume: np.ndarray  # [Z,Y,X] intensities, integer or float64
    affine: np.ndarray  # 4×4, voxel (x,y,z) → mm, x to the patient's right, y to the front, z up, as in NIfTI
    spacing_mm: tuple[float, float, float]  # (z,y,x); z is the distance between slices, not their thickness
    names: tuple[str, ...]  # file of each slice


# %%
#| export
def read_series(
    folder: Path | zipfile.Path,  # one .dcm file per slice, with any names; without such files, all that are DICOM
) -> Series:  # ordered by position, rescaled
    """A folder of DICOM slices as a volume.

    Raises DataError naming folder and files for less than two slices, a broken or compressed file that cannot be read,
    slices of different scans, two at one place, and uneven distances (a slice is missing)."""
    files = _slice_files(folder)
    if len(files) < 2:
        found = f"{len(files)} .dcm files" if folder.is_dir() else "no such folder"
        raise DataError(folder, found, "at least two, one a slice")
    headers = {name: _read_header(files[name]) for name in sorted(files)}
    names, affine, spacing_mm = _geometry(folder, headers)
    first = headers[names[0]]
    check_memory(folder, len(names) * int(first.Rows) * int(first.Columns) * 4)
    return Series(np.stack([_pixels(files[name], headers[name]) for name in names]), affine, spacing_mm, names)


# %%
#| export
def _files(folder: _File, ending: str = "") -> dict[str, _File]:
    "Name → file, for all with this ending but hidden ones; empty if there is no folder."
    entries = in_folder(folder) if isinstance(folder, Path) else folder.iterdir() if folder.is_dir() else ()
    return {file.name: file for file in entries
            if file.name.lower().endswith(ending) and not file.name.startswith(".") and file.is_file()}


# %%
#| export
def _slice_files(folder: _File) -> dict[str, _File]:
    "The files of a series: those that end in .dcm, else those that begin as DICOM does, but for a DICOMDIR."
    return _files(folder, ".dcm") or {name: file for name, file in _files(folder).items()
                                      if name.upper() != "DICOMDIR" and _begins_as_dicom(file)}


# %%
#| export
def _begins_as_dicom(file: _File) -> bool:
    "Whether a file has DICOM's mark after 128 bytes."
    try:
        with file.open("rb") as opened:
            return bytes(opened.read(132))[128:] == b"DICM"
    except OSError as error:
        raise DataError(file, f"an unreadable file ({error})", "complete DICOM") from error


# %% [markdown]
# The geometry is the equation above, on files that are known to belong together.

# %%
#| export
def _geometry(folder: _File, headers: Mapping[str, Header]) -> tuple[tuple[str, ...], np.ndarray, _Spacing]:
    "Names in the order of the slices, affine, and spacing (z,y,x) in mm. Raises DataError unless they form a stack."
    _check_one_series(folder, headers)
    first = next(iter(headers.values()))
    across, down = _directions(folder, first)
    normal, (dy, dx) = np.cross(across, down), (float(mm) for mm in first.PixelSpacing)
    places = {name: np.array(header.ImagePositionPatient, float) for name, header in headers.items()}
    names = tuple(sorted(places, key=lambda name: places[name] @ normal))
    positions = np.stack([places[name] for name in names])
    _check_steps(folder, names, positions, normal, max(dy, dx))
    step = (positions[-1] - positions[0]) / (len(names) - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([across * dx, down * dy, step, positions[0]])
    affine[:2] *= -1  # DICOM counts to the left and to the back
    return names, affine, (float(np.linalg.norm(step)), dy, dx)


# %%
#| export
def _directions(folder: _File, header: Header) -> tuple[np.ndarray, np.ndarray]:
    "Directions along a row and along a column."
    across, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    if not np.allclose([across @ across, down @ down, across @ down], [1, 1, 0], atol=1e-3):
        raise DataError(folder, f"ImageOrientationPatient {list(header.ImageOrientationPatient)}",
                        "two directions of length 1 at a right angle")
    return across, down


# %%
#| export
def _check_one_series(folder: _File, headers: Mapping[str, Header]) -> None:
    "Raise DataError for files of different scans."
    names = list(headers)
    for field in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "EchoTime"):
        values = [np.atleast_1d(np.array(headers[name].get(field, np.nan), float)) for name in names]
        for name, value in zip(names, values, strict=True):
            if value.shape != values[0].shape or not np.allclose(value, values[0], rtol=0, atol=1e-3, equal_nan=True):
                raise DataError(folder, f"{field} {headers[names[0]].get(field)} in {names[0]} and "
                                f"{headers[name].get(field)} in {name}", "the slices of one scan")
    series = Counter(str(header.get("SeriesInstanceUID")) for header in headers.values())
    if 1 < len(series) < len(names):  # one for each file comes from removing names and says nothing
        raise DataError(folder, f"{len(series)} values of SeriesInstanceUID in {len(names)} files", "one scan")


# %%
#| export
def _check_steps(
    folder: _File, names: Sequence[str], positions: np.ndarray, normal: np.ndarray, pixel_mm: float
) -> None:
    "Raise DataError unless sorted slices are a regular stack: gaps within a tenth, no shift by more than a pixel."
    depths = positions @ normal
    _check_gaps(folder, names, depths)
    aside = np.linalg.norm(positions - positions[0] - np.outer(depths - depths[0], normal), axis=1)
    if aside.max() > pixel_mm:
        raise DataError(folder, f"{names[int(aside.argmax())]} shifted sideways by {aside.max():.1f} mm",
                        f"slices above each other, like {names[0]}")


# %%
#| export
def _check_gaps(folder: _File, names: Sequence[str], depths: np.ndarray) -> None:
    "Raise DataError for two slices at one place, and for gaps that differ by more than a tenth."
    gaps = np.diff(depths)
    usual = np.median(gaps)
    least, worst = int(np.argmin(gaps)), int(np.argmax(np.abs(gaps - usual)))
    if not np.isfinite(gaps).all() or gaps[least] < 0.01:
        raise DataError(folder, f"{names[least]} and {names[least + 1]} at the same place, {depths[least]:.1f} mm",
                        "one file for each place")
    if abs(gaps[worst] - usual) > 0.1 * usual:
        raise DataError(folder, f"{gaps[worst]:.2f} mm from {names[worst]} to {names[worst + 1]}",
                        f"{usual:.2f} mm, as between the others: is a slice missing?")


# %% [markdown]
# **Equal** to the equation, voxel by voxel, and to what was drawn: the shuffled files come back in the order of the
# body, 8 mm apart.

# %%
series = read_series(folder)
np.testing.assert_array_equal(series.volume, volume)
assert series.spacing_mm == (DISTANCE_MM, PIXEL_MM, PIXEL_MM) and sorted(series.names) != list(series.names)
for i, j, k in np.ndindex(2, 2, 2):  # column, row, slice
    left, back, up = POSITIONS_MM[k][0] + PIXEL_MM * i, POSITIONS_MM[k][1] + PIXEL_MM * j, POSITIONS_MM[k][2]
    np.testing.assert_allclose(series.affine @ [i, j, k, 1], [-left, -back, up, 1])
print("distance from positions:", series.spacing_mm[0], "mm; written in the files as thickness:", THICKNESS_MM, "mm")

# %% [markdown]
# Then each fault in turn. The first helper checks an error's message, the second spoils a copy of the folder.

# %%
refused = partial(errors.refused, folder=data)  # the messages without the temporary folder

def with_fault(spoil):
    shutil.rmtree(copy := data / "spoilt", ignore_errors=True)
    shutil.copytree(folder, copy)
    spoil(copy)
    return lambda: read_series(copy)


# %%
third = series.names[2]
turned = {"orientation": (0, 1, 0, 0, 0, -1)}
again = partial(write_slice, pixels=volume[2], position_mm=POSITIONS_MM[2])
print(refused(with_fault(lambda f: (f / third).unlink()), "16.00 mm from", "8.00 mm", "missing?"))
print(refused(with_fault(lambda f: again(f / "x.dcm", **GEOMETRY)), third, "same place"))
print(refused(with_fault(lambda f: again(f / "x.dcm", **GEOMETRY | {"EchoTime": 2.3})), "EchoTime 4.6", "2.3 in x.dcm"))
print(refused(with_fault(lambda f: again(f / third, **GEOMETRY, **turned)), "ImageOrientationPatient", third))
print(refused(with_fault(lambda f: (f / third).write_bytes((f / third).read_bytes()[:9000])), third, "decoded"))


# %% [markdown]
# A compressed slice is read as long as a decoder is installed:

# %%
def packed(folder, syntax):
    "The third slice as RLE, with the name of another compression if told."
    header = pydicom.dcmread(folder / third)
    header.compress(RLELossless)
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(folder / third)

np.testing.assert_array_equal(with_fault(lambda f: packed(f, RLELossless))().volume, volume)
print(refused(with_fault(lambda f: packed(f, JPEGLosslessSV1)), third, "JPEG Lossless"))

# %% [markdown]
# ## Two echoes of one slice
#
# Protons in fat turn slower than those in water, by 3.4 millionths: at 1.5 tesla by $\Delta f=217$ Hz, one turn in
# 4.6 ms. After 2.3 ms they point in opposite directions, after 4.6 ms in the same one again. With $W$ and $F$ the
# signals of water and fat in a voxel, the image at echo time $T_E$ is
#
# $$I(T_E)=\big|\,W+F\,e^{-2\pi i\,\Delta f\,T_E}\big|$$
#
# In phase that is $W+F$, out of phase $|W-F|$. By hand: $W=0.6$, $F=0.3$ give 0.9 and 0.3; equal shares cancel to 0.

# %%
SHIFT_HZ = 3.4e-6 * 42.577e6 * 1.5

def echo(water, fat, echo_ms):
    "Magnitude of a voxel's signal."
    return np.abs(water + fat * np.exp(-2j * np.pi * SHIFT_HZ * echo_ms / 1000))

turn_ms = 1000 / SHIFT_HZ
np.testing.assert_allclose(echo(0.6, 0.3, np.array([turn_ms, turn_ms / 2])), [0.9, 0.3])
assert echo(0.5, 0.5, turn_ms / 2) < 1e-12


# %%
def plot_echoes(times_ms, k=6):
    "The same slice at different echo times."
    _, axes = panels(len(times_ms), size=2.7)
    blurred = [gaussian_filter(part[k], 0.4) for part in (water, fat)]
    for axis, echo_ms in zip(axes, times_ms, strict=True):
        draw(axis, echo(*blurred, echo_ms), title=f"echo time {echo_ms:g} ms")

plot_echoes([0.0, 1.15, 2.3, 4.6])

# %%
interact(lambda echo_ms=2.3: plot_echoes([echo_ms]), echo_ms=(0.0, 9.2, 0.1));

# %% [markdown]
# A voxel at the border of an organ holds water of the organ and fat of its surroundings. Out of phase the two cancel,
# which draws a black line around kidneys and muscle. The paper trains on the in-phase image, for which the labels were
# drawn. The other echo has the same grid and can be a second channel; whether it helps has to be measured.

# %% [markdown]
# ## Labels in PNG files
#
# One gray PNG per slice, named as its in-phase DICOM file: `IMG-0004-00002.dcm` and `IMG-0004-00002.png`. **Only the
# name, or the running number in it, tells which label belongs to which slice.** T1-DUAL counts through both echoes, so
# in-phase files have the even numbers. Organs are ranges of gray, around 63, 126, 189 and 252; any other value is an
# error.

# %%
#| export
CHAOS_CLASSES = ("background", "LIV", "RK", "LK", "SPL")  # liver, right kidney, left kidney, spleen
CHAOS_IGNORE = 5  # an unannotated pixel of a scribble: no class id
_GRAYS = ((55, 70), (110, 135), (175, 200), (240, 255))  # of a label's PNG: lowest and highest, class 1 to 4


# %%
#| export
def _as_classes(values: np.ndarray, where: _File, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    "Class ids as uint8 by range, 0 stays 0. Raise DataError for any other value."
    label, known = np.zeros(values.shape, np.uint8), values == 0
    for class_id, (low, high) in enumerate(ranges, 1):
        inside = (values >= low) & (values <= high)
        label[inside], known = class_id, known | inside
    if not known.all():
        counts = sorted(Counter(values[~known].tolist()).items())[:5]
        strange = ", ".join(f"{value} ({count}×)" for value, count in counts)
        wanted = ", ".join(f"{low}–{high}" if low < high else f"{low}" for low, high in ranges)
        raise DataError(where, f"the values {strange}", f"0, {wanted}")
    return label


# %%
#| export
def _pair(names: Sequence[str], pictures: Sequence[str], where: _File) -> dict[str, str]:
    "Slice → its PNG: by name, or by the running number at the names' end."
    for key in (_stem, _running_number):
        ours, theirs = ({key(name): name for name in some} for some in (names, pictures))
        if None not in ours and ours.keys() == theirs.keys() and len(ours) == len(names) == len(pictures):
            return {ours[link]: theirs[link] for link in ours}
    stems = [{_stem(name): name for name in some} for some in (names, pictures)]
    alone = sorted((stems[0] | stems[1])[stem] for stem in stems[0].keys() ^ stems[1].keys())
    raise DataError(where, f"{len(pictures)} PNG files for {len(names)} slices; without a partner: "
                    f"{', '.join(alone[:4])}{' …' if len(alone) > 4 else ''}",
                    "one a slice, of the same name or running number")


# %%
#| export
def _stem(name: str) -> str:
    "A file's name without .dcm or .png; a name without ending may be a number with dots, which stays."
    return name[:-4] if name.lower().endswith((".dcm", ".png")) else name


def _running_number(name: str) -> str | None:
    "The number at the end of a file's name, without leading zeros."
    found = re.search(r"0*(\d+)$", _stem(name))
    return found and found[1]


# %%
#| export
def _read_ground(folder: _File, names: Sequence[str], shape: tuple[int, int]) -> np.ndarray:
    "[Z,Y,X] class ids of slices with these names."
    files = _files(folder, ".png")
    if not files:
        raise DataError(folder, "no PNG file" if folder.is_dir() else "no such folder", "the labels, one PNG a slice")
    pairs = _pair(names, list(files), folder)
    return np.stack([_as_classes(_read_gray(files[pairs[name]], shape), files[pairs[name]], _GRAYS) for name in names])


# %%
#| export
def _read_gray(file: _File, shape: tuple[int, int]) -> np.ndarray:
    "[Y,X] gray values of a picture of this shape."
    try:
        picture = Image.open(BytesIO(_bytes(file)))
        if picture.size[::-1] != tuple(shape):  # before anything is unpacked
            raise DataError(file, f"shape {picture.size[::-1]}", f"that of the slices, {shape}")
        if picture.mode == "1":  # one bit becomes 255, which would be the spleen
            raise DataError(file, "pixels of one bit", "gray values of 8 or 16 bits")
        return np.asarray(picture if picture.mode in ("L", "I", "I;16") else picture.convert("L"))
    except DataError:
        raise
    except Exception as error:  # whatever a library says of it
        raise DataError(file, f"an unreadable file ({type(error).__name__}: {error})", "complete PNG") from error


# %%
grays = np.array([[0, 63, 110], [200, 240, 55]])
assert _as_classes(grays, "a.png", _GRAYS).tolist() == [[0, 1, 2], [3, 4, 1]]
print(refused(lambda: _as_classes(np.array([0, 90, 90, 255]), "a.png", _GRAYS), "a.png", "90 (2×)", "0, 55–70"))
assert _pair(["IMG-4-0002.dcm", "b-10.dcm"], ["10.png", "x2.png"], "") == {"IMG-4-0002.dcm": "x2.png",
                                                                          "b-10.dcm": "10.png"}
print(refused(lambda: _pair(["a1.dcm", "a2.dcm"], ["a1.png"], "Ground"), "1 PNG files for 2 slices", "a2.dcm"))

# %% [markdown]
# ## The dataset
#
# CHAOS comes in two forms. The release, unpacked or still in its zip: `Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase`,
# `…/OutPhase`, `T1DUAL/Ground`; and `T2SPIR` likewise, another scan of the same 20 people with its own labels. The
# other form is a NIfTI conversion of T2-SPIR, `image_01.nii.gz` with `label_01.nii.gz`, numbered as the release; its
# rows run from back to front, and the loader reverses them, in the affine too. There are no scribbles:
# [chapter 14](14_simulation.ipynb) draws them. The folds are those of the released code, by number.

# %%
#| export
_READING: dict[str, Any] = {"axis": "LPS", "robust": False}  # the scanner's order: to the left, to the back, up
CHAOS_FOLDS = {1: (1, 2, 3, 5, 8, 10, 13), 2: (15, 19, 20, 21, 22, 31, 32), 3: (33, 34, 36, 37, 38, 39)}  # tested ones
_SEQUENCES = {"t1dual": "T1DUAL", "t2spir": "T2SPIR"}  # name → folder of the release
_PHASES = {"in": ("InPhase",), "out": ("OutPhase",), "both": ("InPhase", "OutPhase")}  # name → a folder each channel
ARCHIVE = "CHAOS_Train_Sets.zip"
_INSIDE = ("", "MR", "Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR")
_NIFTI = re.compile(r"(image|label)_(\d+)")


# %%
#| export
def chaos(
    root: Path | str,  # the release's folder (any level down to MR) or zip, or a folder with image_NN.nii.gz
    *,
    sequence: str = "",  # "t1dual" (the paper's) or "t2spir"; empty: t1dual of the release, t2spir of the conversion
    phase: str = "in",  # of T1-DUAL: "in" (the paper's), "out", or "both" as two channels
    scribbles: str | Callable = "paper",  # `how` of `simulate`, or "none", or a function of label and case name
    seed: int = 0,  # of the simulated hand
    **options: object,  # other options of `simulate`
) -> Dataset:  # "chaos": 5 classes, ignore 5, three folds; case names and source say which sequence it is
    """The MR training set of CHAOS (Kavur et al., Medical Image Analysis 2021).

    Intensities are cut and scaled per volume as in `acdc`. Raises ValueError for an unknown option; DataError if there
    is no patient, one that no fold knows, or one without the sequence; and on reading for whatever is broken,
    contradictory or missing."""
    root, pairs = Path(root), _conversion(Path(root))
    sequence = _sequence(sequence, phase, root, bool(pairs))
    numbers = sorted(pairs) if pairs else _release_numbers(root, sequence)
    folds, settings = _folds(root, numbers), _settings(sequence, phase, scribbles, seed, options)
    read = partial(_read_patient, root=root, pairs=pairs, sequence=sequence, phase=phase,
                   hand=_hand(scribbles, seed, options))
    return Dataset("chaos", CHAOS_CLASSES, CHAOS_IGNORE, tuple(f"chaos{n:02d}" for n in numbers), read, folds, "chaos",
                   _credit(settings, bool(pairs)), len(_PHASES[phase]), settings, reading=_READING,
                   content=None if callable(scribbles) else partial(_hashes, root=root, pairs=pairs, sequence=sequence))


# %% [markdown]
# Its parts: which sequence is read, which patients are tested, and what is written down about it.

# %%
#| export
def _sequence(sequence: str, phase: str, root: Path, conversion: bool) -> str:
    "The sequence to read, once it is known to be there."
    sequence = one_of("sequence", sequence or ("t2spir" if conversion else "t1dual"), _SEQUENCES)
    if one_of("phase", phase, _PHASES) != "in" and sequence == "t2spir":
        raise ValueError(f"phase: found {phase!r}, expected 'in': T2-SPIR has one image, not two")
    if conversion and sequence != "t2spir":
        raise DataError(root, "T2-SPIR only", f"the original release, for the sequence {sequence}")
    return sequence


# %%
#| export
def _folds(root: Path, numbers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    "Fold → patients tested, of those that are there. Raises DataError for one that no fold knows."
    if strangers := sorted(set(numbers) - {n for test in CHAOS_FOLDS.values() for n in test}):
        raise DataError(root, f"patient {strangers[0]}", f"only those of the folds, {CHAOS_FOLDS}")
    folds = {fold: tuple(f"chaos{n:02d}" for n in test if n in numbers) for fold, test in CHAOS_FOLDS.items()}
    return {fold: test for fold, test in folds.items() if test}


# %%
#| export
def _settings(sequence: str, phase: str, scribbles: str | Callable, seed: int, options: dict) -> dict[str, object]:
    "What decides the cases, for a run's settings."
    settings = {"sequence": sequence} | ({"phase": phase} if sequence == "t1dual" else {})
    return settings | ({"scribbles": scribbles, "seed": seed} | options if isinstance(scribbles, str) else {})


def _credit(settings: Mapping[str, object], conversion: bool) -> str:
    "Where the cases come from, and under which licence."
    listed = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (f"CHAOS MR, {listed}{', NIfTI conversion' if conversion else ''}; "
            "Kavur et al., Medical Image Analysis 2021, CC BY-NC-SA 4.0")


# %% [markdown]
# A wrong option of the simulated annotator is refused at once, by trying it on a small label, and not in the middle of
# a training.

# %%
#| export
_TRIAL = np.kron([[[0, 0, 0, 0, 0], [0, 1, 0, 2, 0], [0, 0, 0, 0, 0], [0, 3, 0, 4, 0], [0, 0, 0, 0, 0]]],
                 np.ones((1, 7, 7), np.uint8)).astype(np.uint8)


def _hand(scribbles: str | Callable, seed: int, options: dict) -> Callable[[np.ndarray, str], np.ndarray] | None:
    "Label and case name → scribble; None for no scribbles."
    if callable(scribbles) or scribbles == "none":
        if options:
            raise TypeError(f"chaos: found the options {', '.join(options)}, expected none without a simulated hand")
        return scribbles if callable(scribbles) else None
    draw: Callable[..., np.ndarray] = partial(
        simulate, how=scribbles, classes=len(CHAOS_CLASSES), ignore=CHAOS_IGNORE, seed=seed, **options)
    draw(_TRIAL, case="trial")
    return lambda label, name: draw(label, case=name)


# %% [markdown]
# `options` of the dataset records which sequence it turned out to be. A run puts it into its settings and its name, and
# every case is called `chaos01_t1in`, `chaos01_t2spir` or the like, so results of two sequences cannot be confused.
#
# **The release.** Its folder may be given at any level, and the zip is read without unpacking it.

# %%
#| export
@contextmanager
def _release(root: Path) -> Iterator[dict[int, _File]]:
    "Number → folder of each patient of the release, unpacked or in its zip."
    if patients := _patients(root):
        yield patients
        return
    archive = root if root.is_file() else root / ARCHIVE
    if not archive.is_file():
        raise DataError(root, "no patient" if root.is_dir() else "no such folder",
                        f"Train_Sets/MR/1/T1DUAL and so on, {ARCHIVE}, or image_NN.nii.gz with label_NN.nii.gz")
    with _open_zip(archive) as opened:
        if not (patients := _patients(zipfile.Path(opened))):
            raise DataError(archive, "no patient", "Train_Sets/MR/1/T1DUAL and so on")
        yield patients


# %%
#| export
def _open_zip(path: Path) -> zipfile.ZipFile:
    "A zip, open for reading."
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(path, f"an unreadable file ({error})", "a complete zip") from error


# %%
#| export
def _patients(root: _File) -> dict[int, _File]:
    "Number → folder of each patient below a folder of the release; empty where there is none."
    return next(filter(None, (_numbered(root / inside) for inside in _INSIDE)), {})


def _numbered(folder: _File) -> dict[int, _File]:
    "Subfolders with a number for a name. Raises DataError for two of one number, such as 2 and 02."
    if not folder.is_dir():
        return {}
    found: dict[int, _File] = {}
    for entry in in_folder(folder) if isinstance(folder, Path) else folder.iterdir():
        if entry.name.isdecimal() and entry.is_dir():
            if (first := found.setdefault(int(entry.name), entry)).name != entry.name:
                raise DataError(entry, f"a second folder of patient {int(entry.name)}", f"only {first}")
    return found


# %%
#| export
def _release_numbers(root: Path, sequence: str) -> list[int]:
    "The patients, all of which must have the sequence."
    with _release(root) as patients:
        for folder in patients.values():
            if not (folder / _SEQUENCES[sequence]).is_dir():
                found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
                raise DataError(folder, found, f"a folder {_SEQUENCES[sequence]}")
    return sorted(patients)


# %% [markdown]
# **One patient.** Labels are named as the in-phase files, so these are read whichever echo is asked for.

# %%
#| export
def _read_patient(patient: str, *, root: Path, pairs: Mapping[int, dict[str, Path]], sequence: str, phase: str,
                  hand: Callable | None) -> list[Case]:
    "A patient's one case, with its simulated scribble."
    frame, number = "t2spir" if sequence == "t2spir" else f"t1{phase}", int(patient.removeprefix("chaos"))
    if pairs:
        case = _read_conversion(patient, frame, pairs[number])
    else:
        with _release(root) as patients:
            case = _read_release(patient, frame, patients[number] / _SEQUENCES[sequence], phase)
    return [replace(case, scribble=hand(case.label, case.name)) if hand else case]


# %%
#| export
def _read_release(patient: str, frame: str, folder: _File, phase: str) -> Case:
    "One scan of the release."
    scans, dual = folder / "DICOM_anon", frame != "t2spir"
    wanted = _PHASES[phase] if dual else ("",)
    series = {name: read_series(scans / name) for name in (dict.fromkeys(("InPhase", *wanted)) if dual else wanted)}
    _check_echoes(scans, series)
    first = next(iter(series.values()))
    label = _read_ground(folder / "Ground", first.names, first.volume.shape[1:])
    if dual:
        _check_lengths(scans, series)
    channels = [_scaled(series[name].volume, scans / name) for name in wanted]
    image = channels[0] if len(channels) == 1 else np.stack(channels, 1)
    return Case(patient, frame, image, first.spacing_mm, first.affine, label=label, source=str(folder))


# %%
#| export
def _check_echoes(scans: _File, series: Mapping[str, Series]) -> None:
    "Raise DataError unless all echoes lie where the first one lies."
    first = next(iter(series.values()))
    for name, other in series.items():
        if other.volume.shape != first.volume.shape or not np.allclose(other.affine, first.affine, atol=0.01):
            raise DataError(scans / name, f"{other.volume.shape} voxels at {other.affine[:3, 3].round(2)} mm",
                            f"the grid of InPhase, {first.volume.shape} at {first.affine[:3, 3].round(2)} mm")


# %%
#| export
def _check_lengths(scans: _File, series: Mapping[str, Series]) -> None:
    "Raise DataError if the other echo, which need not be there, has more slices: then one that is read lacks some."
    for other in _PHASES["both"]:
        count, (name, one) = len(_slice_files(scans / other)), next(iter(series.items()))
        if count > len(one.names):
            raise DataError(scans / name, f"{len(one.names)} slices beside {count} in {other}",
                            "as many in both: is a slice missing?")


# %%
#| export
def _scaled(volume: np.ndarray, where: _File) -> np.ndarray:
    "[Z,Y,X] float32 in [0,1]."
    try:
        return scale_intensities(volume, 1 if already_cut(volume) else 0.99)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


# %% [markdown]
# **Which data it was.** A hash for the scans and one for the labels; the simulated strokes follow from them and from the
# settings. A zip holds a check sum of each of its files already, so the unpacked files are asked for the same.

# %%
#| export
def _hashes(patient: str, *, root: Path, pairs: Mapping[int, dict[str, Path]], sequence: str) -> dict[str, str]:
    "Kind of data → hash of a patient's files."
    number = int(patient.removeprefix("chaos"))
    if pairs:
        return file_hashes({f"{kind}s": [path] for kind, path in sorted(pairs[number].items())})
    with _release(root) as patients:
        folder = patients[number] / _SEQUENCES[sequence]
        return {kind: _sums(folder / name) for kind, name in (("images", "DICOM_anon"), ("labels", "Ground"))}


# %%
#| export
def _sums(folder: _File) -> str:
    "The hash of names and check sums of all files below a folder."
    found, places = [], [("", folder)]
    while places:
        name, place = places.pop()
        if place.is_dir():
            places += [(f"{name}/{entry.name}", entry) for entry in place.iterdir()]
        elif isinstance(place, zipfile.Path):
            found.append((name, place.root.getinfo(place.at).CRC))
        elif place.is_file():
            found.append((name, zlib.crc32(place.read_bytes())))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:16]


# %% [markdown]
# **The conversion.** Two NIfTI files per patient, turned into the scanner's order of voxels.

# %%
#| export
def _conversion(root: Path) -> dict[int, dict[str, Path]]:
    "Number → image and label of the NIfTI conversion; empty where there is none. Raises DataError for two of one."
    pairs: dict[int, dict[str, Path]] = {}
    for path in in_folder(root):
        if is_nifti(path) and (match := _NIFTI.fullmatch(stem(path))):
            if (first := pairs.setdefault(int(match[2]), {}).setdefault(match[1], path)) != path:
                raise DataError(path, f"a second {match[1]} of patient {int(match[2])}", f"only {first}")
    return pairs if any("image" in pair for pair in pairs.values()) else {}


# %%
#| export
def _read_conversion(patient: str, frame: str, pair: dict[str, Path]) -> Case:
    "One scan of the conversion, its voxels in the scanner's order: to the left, to the back, up."
    if missing := {"image", "label"} - set(pair):
        raise DataError(next(iter(pair.values())), f"no {missing.pop()} of the same number",
                        "image_NN.nii.gz and label_NN.nii.gz")
    (volume, scan), (values, mask) = (read_nifti(pair[kind]) for kind in ("image", "label"))
    _check_same_grid(pair["label"], mask, scan, True)
    grid = Grid.of(scan, _READING["axis"])
    volume, values = (np.ascontiguousarray(grid.take(array.T)) for array in (volume, values))
    label = _as_classes(values, pair["label"], [(n, n) for n in range(1, len(CHAOS_CLASSES))])
    return Case(patient, frame, _scaled(volume, pair["image"]), grid.spacing_mm, grid.affine, label=label,
                source=str(pair["image"]), grid=grid)


# %% [markdown]
# ## A release of one patient
#
# The abdomen in the layout of the release: both echoes, numbered from the top, and their labels. The folder and the zip
# must give the same, and the label must lie on its image although the names run downwards.

# %%
release = data / "release"
scan = release / "Train_Sets/MR/1/T1DUAL"
(scan / "Ground").mkdir(parents=True)
for k in range(len(volume)):
    for n, (phase, echo_ms) in enumerate((("OutPhase", 2.303), ("InPhase", 4.605)), 1):
        name = f"IMG-0004-{2 * (len(volume) - 1 - k) + n:05d}"
        write_slice(scan / "DICOM_anon" / phase / f"{name}.dcm", 1000 * echo(water[k], fat[k], echo_ms),
                    POSITIONS_MM[k], **GEOMETRY | {"EchoTime": echo_ms})
    Image.fromarray(63 * label[k]).save(scan / "Ground" / f"{name}.png")
shutil.make_archive(str(data / "CHAOS_Train_Sets"), "zip", release)

# %%
unpacked, zipped = chaos(release, phase="both"), chaos(data / ARCHIVE, phase="both")
(case,), (same,) = unpacked.cases(), zipped.cases()
for field in ("image", "label", "scribble", "affine"):
    np.testing.assert_array_equal(getattr(case, field), getattr(same, field))
np.testing.assert_array_equal(case.label, label)
assert (case.name, case.channels, case.spacing_mm) == ("chaos01_t1both", 2, (DISTANCE_MM, PIXEL_MM, PIXEL_MM))
print(unpacked.source, unpacked.options, sep="\n")

# %%
figure, axes = panels(4, size=2.7)
for axis, channel, title in zip(axes, case.image[7], ("in phase", "out of phase"), strict=False):
    draw(axis, channel, spacing_mm=(PIXEL_MM, PIXEL_MM), title=title)
draw(axes[2], case.gray[7], scribble=case.scribble[7], ignore=CHAOS_IGNORE, title="scribble, simulated")
draw(axes[3], case.gray[7], label=case.label[7], title="label, from PNG")
class_legend(figure, CHAOS_CLASSES, background=True)

# %%
read_toy = lambda **options: list(chaos(release, **options).cases())
ground = scan / "Ground"
Image.fromarray(label[0] + np.uint8(90)).save(spoilt := ground / "IMG-0004-00032.png")
print(refused(read_toy, "IMG-0004-00032.png", "90 (", "0, 55–70, 110–135, 175–200, 240–255"))
spoilt.unlink()
print(refused(read_toy, "15 PNG files for 16 slices", "IMG-0004-00032.dcm"))
print(refused(lambda: chaos(release, sequence="t2spir"), "MR/1: found T1DUAL, expected a folder T2SPIR"))

# %% [markdown]
# ## Real data
#
# The NIfTI conversion of T2-SPIR, where this machine has it: patients, distance of slices, and how much the simulated
# annotator draws. This shows that the files are read correctly. It says nothing about T1-DUAL in phase, on which the
# paper reports: those images look different, and scores do not carry over.

# %%
folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "chaos_t2spir"
if folder.is_dir():
    real = chaos(folder)
    case = real.read("chaos01")[0]
    share = np.mean(case.scribble != CHAOS_IGNORE)
    print(f"{real.source}\n{len(real.patients)} patients, folds of {[len(test) for test in real.folds.values()]}")
    print(f"{case.name}: {case.shape}, {case.spacing_mm} mm, {share:.2%} of the pixels annotated by the simulated hand")
    assert len(real.patients) == 20 and real.options["sequence"] == "t2spir"
else:
    print("skipped: needs CHAOS; set ATTENSCRIBBLE_DATA to the folder that holds chaos_t2spir/")

# %%
if folder.is_dir():
    z = int(np.argmax([len(np.unique(plane)) * 1e6 + (plane > 0).sum() for plane in case.label]))
    image, scribble_, label_ = (part[z] for part in (case.image, case.scribble, case.label))
    figure, axes = panels(3, size=3.2)
    draw(axes[0], image, spacing_mm=case.spacing_mm[1:], title=f"{case.name}, slice {z}")
    draw(axes[1], image, scribble=scribble_, ignore=CHAOS_IGNORE, title="scribble, simulated")
    draw(axes[2], image, outline=label_, title="label")
    class_legend(figure, CHAOS_CLASSES, background=True)


# %% [markdown]
# ## Exercises
#
# **1. Predict.** Somebody computes volumes as voxels × pixel area × `SliceThickness`. By which factor are they off?

# %%
def check_factor(f):
    assert np.isclose(f(5.0, 8.0), (liver_ml * THICKNESS_MM) / (liver_ml * DISTANCE_MM)) and np.isclose(f(3.0, 3.0), 1)

def my_factor(thickness_mm, distance_mm):
    return 1.0  # improve this

exercise(check_factor, my_factor, solution=lambda thickness_mm, distance_mm: thickness_mm / distance_mm)


# %% [markdown]
# **2. Implement** which way a stack grows: "S" (up), "I", "A" (front), "P", "L", "R" for the axis nearest to the
# normal.

# %%
def check_letter(f):
    assert f((1, 0, 0, 0, 1, 0)) == "S" and f((1, 0, 0, 0, 0, -1)) == "P" and f((0, 1, 0, 0, 0, -1)) == "R"
    assert f((0.9, 0.1, 0.42, -0.1, 0.99, 0)) == "S"

def my_letter(orientation):
    ...  # your code here

def solution_letter(orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    axis = np.argmax(np.abs(normal))
    return ("RL", "AP", "IS")[axis][int(normal[axis] > 0)]  # DICOM: x to the left, y to the back, z up

exercise(check_letter, my_letter, solution_letter)


# %% [markdown]
# **3. Break** the common shortcut of sorting by the $z$ of the position: give an orientation and two positions that
# are 8 mm apart along the normal, for which $z$ runs the wrong way.

# %%
def check_shortcut(f):
    orientation, lower, upper = (np.array(part, float) for part in f())
    normal = np.cross(orientation[:3], orientation[3:])
    assert np.isclose((upper - lower) @ normal, 8) and upper[2] < lower[2]

def my_shortcut():
    return (1, 0, 0, 0, 1, 0), (0, 0, 0), (0, 0, 8)  # improve this

exercise(check_shortcut, my_shortcut, solution=lambda: ((1, 0, 0, 0, -1, 0), (0, 0, 8), (0, 0, 0)))


# %% [markdown]
# **4. Implement** the share of fat in a voxel from its two echoes, where water is the larger part.

# %%
def check_fat(f):
    wet, greasy = np.array([0.6, 0.5, 0.3]), np.array([0.3, 0.1, 0.0])
    np.testing.assert_allclose(f(echo(wet, greasy, 1000 / SHIFT_HZ), echo(wet, greasy, 500 / SHIFT_HZ)),
                               greasy / (wet + greasy), atol=1e-6)

def my_fat(in_phase, out_phase):
    return 1 - out_phase / in_phase  # improve this

exercise(check_fat, my_fat, solution=lambda in_phase, out_phase: (in_phase - out_phase) / (2 * in_phase))

# %% [markdown]
# ## Recap
#
# Exported: `chaos`, the dataset; `read_series`, which orders any DICOM folder or says why it cannot, and its `Series`;
# `write_slice`, which makes files for tests. What may surprise: the thickness of a slice is not the distance to the
# next, two echoes share the number of their series, and only its name ties a label to a slice.
# [Chapter 19](19_datasets.ipynb) finds CHAOS by its name.
