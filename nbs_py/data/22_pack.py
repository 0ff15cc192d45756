# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A dataset in one file
#
# > All scans, scribbles, labels and folds of a dataset in one small file that is complete or refused.
#
# How do you bring a dataset of hundreds of files to a machine that can be reached for minutes only? Copied file by
# file, something gets lost, and what arrives is larger than what a training can use of it. This chapter rounds the
# images to one byte a voxel, stores what a neighbour does not foretell, and seals the whole in one file.

# %%
#| default_exp data.pack

# %%
#| export
import base64
import hashlib
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

# %%
#| export
import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_atomic
from attenscribble.data.grid import Grid, _geometry_only, three_axes
from attenscribble.data.scans import Case, Dataset, _some_patients

# %%
import os
import tempfile

from ipywidgets import interact

from attenscribble.basics.checking import cost, exercise
from attenscribble.basics.drawing import draw, panels
from attenscribble.basics.errors import refused
from attenscribble.data.phantom import phantom
from attenscribble.data.scans import acdc

# %% [markdown]
# ## The answer, as a picture
#
# A slice as a loader gives it, as it comes back from the pack, the difference a hundred times enlarged, and what is
# stored: mostly numbers near zero, which are drawn gray. (The functions come from the finished module; the chapter
# builds them.)

# %%
from attenscribble.data.pack import _quantised, _restored, _unforetold

CASE = next(phantom(patients=1, side=96, slices=4).cases())

def plot_packing(levels, z=1):
    "One slice, its packed form, their difference, and what is stored of it."
    steps = _quantised(CASE.image, levels)
    back = _restored(steps, levels)
    _, axes = panels(4, size=2.4)
    draw(axes[0], CASE.image[z], spacing_mm=CASE.spacing_mm[1:], title="image, 32 bits a voxel")
    draw(axes[1], back[z], title=f"packed, {levels} levels")
    draw(axes[2], 0.5 + 100 * (back - CASE.image)[z], title=f"100 × difference, below {50 / levels:.2f} %")
    draw(axes[3], 0.5 + _unforetold(steps)[z].astype(np.int8) / levels, title="stored")

plot_packing(255)

# %%
interact(plot_packing, levels=(1, 255), z=(0, 3));

# %% [markdown]
# ## The obvious way, and how it fails
#
# NumPy writes several arrays into one compressed file. Four scans of the phantom:

# %%
work = Path(tempfile.mkdtemp())
toy = phantom(patients=2, side=96, slices=4)
arrays = {f"{case.name}_{kind}": getattr(case, kind) for case in toy.cases() for kind in ("image", "scribble", "label")}
np.savez_compressed(work / "naive.npz", **arrays)
NAIVE = (work / "naive.npz").stat().st_size
print(f"{NAIVE:,} bytes, {NAIVE / sum(case.image.size for case in toy.cases()):.2f} a voxel")
assert NAIVE > 2 * sum(case.image.size for case in toy.cases())


# %% [markdown]
# This has four faults. The last bits of a float are noise, and noise cannot be compressed. Voxel sizes, folds and the
# meaning of a 4 stay behind. After a copy that broke off, some arrays are there and others are not. And whoever allows
# `numpy.load` to unpickle runs what a stranger wrote.

# %% [markdown]
# ## One byte a voxel
#
# With $n$ levels, an intensity $I\in[0,1]$ is stored as the nearest step $q$ and comes back as $q/n$:
#
# $$q=\mathrm{round}(nI),\qquad\left|\frac qn-I\right|\le\frac1{2n}$$
#
# | symbol | variable | shape | unit, range |
# |---|---|---|---|
# | $I$ | `image` | [Z,Y,X] or [Z,K,Y,X] float32 | [0, 1] |
# | $n$ | `levels` | | 1 to 255 |
# | $q$ | `steps` | as `image`, uint8 | 0 to $n$ |
# | $r$ | `rest` | as `image`, uint8 | modulo 256 |
#
# With 255 levels the error is 1/510 at most, 0.2 % of the range. The noise of an MR scan is several times that.

# %%
#| export
def _quantised(image: np.ndarray, levels: int) -> np.ndarray:
    "Intensities in [0,1] as the nearest of 0 … levels, uint8."
    return np.rint(image * np.float32(levels)).astype(np.uint8)


def _restored(steps: np.ndarray, levels: int) -> np.ndarray:
    "The intensities that steps stand for, float32; above 1 for a step that there is not."
    return steps.astype(np.float32) / np.float32(levels)


# %%
values = np.linspace(0, 1, 10_001, dtype=np.float32)
for levels in (1, 63, 100, 255):
    assert np.abs(_restored(_quantised(values, levels), levels) - values).max() <= 0.5 / levels + 1e-6
whole = np.arange(256, dtype=np.uint8)
assert (_quantised(_restored(whole, 255), 255) == whole).all()  # packed twice is packed once


# %% [markdown]
# ## What a neighbour does not foretell
#
# Neighbours look alike. The plane through the pixels to the left, above, and above to the left says what comes next;
# only the rest is stored, modulo 256, so that it fits a byte again. Outside of the image all is 0.
#
# $$r_{y,x}=q_{y,x}-(q_{y,x-1}+q_{y-1,x}-q_{y-1,x-1})\bmod 256$$

# %%
def unforetold_naive(steps):
    "Pixel by pixel, as the equation says."
    q = np.pad(steps.astype(int), ((1, 0), (1, 0)))
    rest = np.zeros_like(steps)
    for y, x in np.ndindex(steps.shape):
        rest[y, x] = (q[y + 1, x + 1] - q[y + 1, x] - q[y, x + 1] + q[y, x]) % 256
    return rest


# %% [markdown]
# **By hand.** A row 10, 12, 14 with nothing above leaves 10, 2, 2. With the same row below it, the second leaves 0, 0,
# 0.
#
# **Fast.** This is a difference along rows, then one along columns, and sums undo it: bytes overflow, and overflow is
# the modulo. No pixel is visited by Python.

# %%
#| export
def _unforetold(steps: np.ndarray) -> np.ndarray:
    "What left, upper and upper left pixel do not foretell of [...,Y,X] uint8, modulo 256."
    rest = np.diff(steps, axis=-1, prepend=np.uint8(0))
    return np.diff(rest, axis=-2, prepend=np.uint8(0))


def _foretold(rest: np.ndarray) -> np.ndarray:
    "Undo `_unforetold`."
    return np.cumsum(np.cumsum(rest, axis=-2, dtype=np.uint8), axis=-1, dtype=np.uint8)


# %%
assert unforetold_naive(np.array([[10, 12, 14]] * 2, np.uint8)).tolist() == [[10, 2, 2], [0, 0, 0]]
noise = np.random.default_rng(0).integers(0, 256, (3, 2, 20, 30), dtype=np.uint8)  # [Z,K,Y,X]
assert (_unforetold(noise)[1, 1] == unforetold_naive(noise[1, 1])).all()
assert (_foretold(_unforetold(noise)) == noise).all() and _unforetold(noise).dtype == np.uint8
print("pixel by pixel", cost(lambda: unforetold_naive(noise[0, 0])))
print("fast          ", cost(lambda: _unforetold(noise[0, 0])))

# %% [markdown]
# **What it saves.** The images of every fourth patient of ACDC, 50 scans, in MB, and the seconds that one core needs to
# unpack them again. A zip knows three ways to compress:
#
# | what is compressed | levels | deflate | bzip2 | LZMA |
# |---|---|---|---|---|
# | steps as they are | 255 | 17.8 MB, 0.3 s | 14.7 MB, 2.5 s | 14.8 MB, 1.7 s |
# | differences along rows | 255 | 16.4 MB, 0.4 s | 15.7 MB, 2.7 s | 15.3 MB, 1.6 s |
# | rest of the plane | 255 | 15.8 MB, 0.4 s | 15.2 MB, 2.7 s | 14.8 MB, 1.6 s |
# | steps as they are | 63 | 12.0 MB, 0.2 s | 10.1 MB, 1.9 s | 10.6 MB, 1.0 s |
# | differences along rows | 63 | 11.2 MB, 0.3 s | 10.5 MB, 2.0 s | 10.2 MB, 1.1 s |
# | rest of the plane | 63 | 10.5 MB, 0.4 s | 9.8 MB, 2.1 s | **9.6 MB, 1.1 s** |

# %% [markdown]
# So images are stored as the rest of the plane, with LZMA. At 255 levels foretelling gains nothing: what is left is
# noise, and some scans have so few intensities of their own that steps repeat. It pays with fewer levels. A foreteller
# that bends at edges, that of lossless JPEG, saves another 4 %, but can be undone only pixel after pixel. Scribbles and
# labels are stored as they are, with bzip2, which is a quarter smaller there.
#
# | all of ACDC, 200 scans | size | largest error |
# |---|---|---|
# | published, *.nii.gz | 94 MB | |
# | packed, 255 levels | 60.8 MB | 0.20 % |
# | packed, 127 levels | 50.6 MB | 0.39 % |
# | packed, 63 levels | 40.0 MB | 0.79 % |
#
# Half as many levels are a bit less for each of 100 million voxels, and that bit was noise. Reading all of the last one
# takes 7 seconds, of which the checksum takes 0.1.

# %%
#| export
_COMPRESSION = {"image": zipfile.ZIP_LZMA, "scribble": zipfile.ZIP_BZIP2, "label": zipfile.ZIP_BZIP2}


# %% [markdown]
# ## What stands in it
#
# A pack is an ordinary zip: `CASE/image.npy`, `CASE/scribble.npy` and `CASE/label.npy`, and a `dataset.json` with
# everything else. For each array it names shape, bytes and SHA-256. Of a file's header it keeps what places the voxels,
# and nothing from which a patient could be known.

# %%
#| export
class _Part(BaseModel):
    "A part of dataset.json: of these fields, no others."

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Member(_Part):
    "An array of the zip."

    shape: tuple[PositiveInt, ...]
    size: PositiveInt  # bytes of the member once unpacked
    sha256: str  # of these bytes


# %%
#| export
class _Space(_Part):
    "A `Grid`."

    header: str  # base64 of a NIfTI header, little-endian
    shape: tuple[PositiveInt, ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    plane: str


# %%
#| export
class _Scan(_Part):
    "A `Case`."

    patient: str
    frame: str
    spacing_mm: tuple[float, float, float] | None
    affine: list[list[float]] | None
    grid: _Space | None
    members: dict[Literal["image", "scribble", "label"], _Member]


# %%
#| export
class _Facts(_Part):
    "What the cases share: the fields of `Dataset` that are data."

    name: str
    class_names: tuple[str, ...]
    ignore: int
    patients: tuple[str, ...]
    folds: dict[int, tuple[str, ...]]
    augmentation: str
    source: str
    channels: int
    options: dict[str, Any]
    trains: dict[int, tuple[str, ...]]
    scored: bool
    values: tuple[int, ...]
    reading: dict[str, Any]


# %%
#| export
_FORMAT = 1  # changes when an older reader could not read it


class _Contents(_Part):
    "All of dataset.json."

    pack: Literal[1]  # `_FORMAT`
    levels: int = Field(ge=1, le=255)
    dataset: _Facts
    scans: list[_Scan]


# %%
assert set(_Facts.model_fields) == {field.name for field in fields(Dataset)} - {"read", "version", "content"}


# %% [markdown]
# **Some patients** may be packed alone. The folds then hold those that are there, and a fold that tests nobody is gone.

# %%
#| export
def _some_of(dataset: Dataset, patients: tuple[str, ...]) -> Dataset:
    "Some patients of a dataset. Raises DataError for one that is not there or named twice, and for none at all."
    if strangers := [patient for patient in patients if patient not in dataset.patients]:
        raise DataError(f"{dataset.name}: patient", repr(strangers[0]), f"one of {_some_patients(dataset)}")

    def present(side: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(patient for patient in side if patient in patients)

    folds = {fold: present(test) for fold, test in dataset.folds.items() if present(test)}
    trains = {fold: present(train) for fold, train in dataset.trains.items() if fold in folds}
    return replace(dataset, patients=patients, folds=folds, trains=trains)


# %%
#| export
def _facts(dataset: Dataset, levels: int) -> _Facts:
    "The facts of a dataset, as they were before any packing."
    facts = {name: getattr(dataset, name) for name in _Facts.model_fields}
    return _Facts(**facts | {"source": dataset.source.removesuffix(_packed_at(levels))})


def _packed_at(levels: int) -> str:
    "What a pack adds to the source of its dataset."
    return f" (packed at {'8 bits' if levels == 255 else f'{levels} levels'})"


# %%
#| export
def _space(grid: Grid) -> _Space:
    "A grid in plain types, with the geometry of its header and no more of it."
    header = _geometry_only(grid.header)
    header.set_data_shape(grid.shape)
    text = base64.b64encode(header.as_byteswapped("<").binaryblock).decode()
    return _Space(header=text, shape=grid.shape, axes=grid.axes, flips=grid.flips, plane=grid.plane)


# %%
#| export
def _grid(space: _Space, where: str, shape: tuple[int, ...]) -> Grid:
    "Undo `_space`. Raises DataError for what is no grid of a case of this shape."
    with _named(where):
        data = base64.b64decode(space.header, validate=True)
        header = (nib.Nifti2Header if len(data) == 540 else nib.Nifti1Header)(data, endianness="<")
        if sorted(space.axes) != [0, 1, 2] or tuple(three_axes(space.shape)[axis] for axis in space.axes) != shape:
            raise DataError(where, f"axes {space.axes} of {space.shape}", f"those of {shape}")
    return Grid(header, space.shape, space.axes, space.flips, space.plane)


# %% [markdown]
# ## Writing
#
# The zip ends with a comment: the SHA-256 of all bytes before it. That seals what a zip's own checksums leave open,
# such as its list of members. Dates and names of systems are left out, so the same dataset gives the same file.

# %%
#| export
_SEAL = 64  # hex digits of the SHA-256 at a pack's end


def _checksums(path: Path) -> tuple[str, str]:
    "The SHA-256 of a file's bytes without its last 64, and those."
    digest, left = hashlib.sha256(), path.stat().st_size - _SEAL
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        return digest.hexdigest(), file.read(_SEAL).decode("ascii", "replace")


# %%
#| export
def _seal(path: Path) -> None:
    "Write the SHA-256 over the last 64 bytes."
    seal = _checksums(path)[0]
    with path.open("r+b") as file:
        file.seek(-_SEAL, 2)
        file.write(seal.encode())


# %%
#| export
def _put(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    "Add a member, with nothing that differs from one machine to the next."
    info = zipfile.ZipInfo(name)  # of 1980
    info.create_system, info.external_attr = 3, 0o644 << 16
    archive.writestr(info, data, compression, 9)


def _put_array(archive: zipfile.ZipFile, case: Case, kind: str, array: np.ndarray) -> _Member:
    "Add an array of a case."
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    data = buffer.getvalue()
    _put(archive, f"{case.name}/{kind}.npy", data, _COMPRESSION[kind])
    return _Member(shape=array.shape, size=len(data), sha256=hashlib.sha256(data).hexdigest())


# %%
#| export
def _put_case(archive: zipfile.ZipFile, case: Case, levels: int) -> _Scan:
    "Add a case. Raises DataError for a second one of the same name."
    if f"{case.name}/image.npy" in archive.namelist():
        raise DataError(case.name, "two cases of this name", "each name once")
    arrays = {"image": _unforetold(_quantised(case.image, levels)), "scribble": case.scribble, "label": case.label}
    members = {kind: _put_array(archive, case, kind, array) for kind, array in arrays.items() if array is not None}
    return _Scan(patient=case.patient, frame=case.frame, spacing_mm=case.spacing_mm,
                 affine=None if case.affine is None else np.asarray(case.affine, float).tolist(),
                 grid=_space(case.grid) if case.grid else None, members=members)


# %%
#| export
def _write(path: Path, dataset: Dataset, levels: int) -> None:
    "Write the pack's file."
    with zipfile.ZipFile(path, "w") as archive:
        scans = [_put_case(archive, case, levels) for case in dataset.cases()]
        contents = _Contents(pack=_FORMAT, levels=levels, dataset=_facts(dataset, levels), scans=scans)
        _put(archive, "dataset.json", contents.model_dump_json(indent=1).encode(), zipfile.ZIP_DEFLATED)
        archive.comment = b"0" * _SEAL
    _seal(path)


# %%
#| export
def write_pack(
    dataset: Dataset,  # with the cases to pack
    path: Path | str,  # the file, such as acdc.pack.zip; one that is there is replaced
    *,
    patients: Iterable[str] | None = None,  # of these, in this order; None: of all
    levels: int = 255,  # steps between black and white, 1 to 255: fewer give a smaller file
) -> Path:  # the file written
    """Write a dataset, or some patients of it, into one file that `pack` opens.

    Scribbles and labels come back exactly, images rounded: by 1/(2·levels) at most, which is 1/510 at 255 levels. A
    reader finds the old file or the new one, never half of it. Raises DataError for a patient that is not there and
    what reading the dataset raises; ValueError for wrong levels."""
    if not 1 <= levels <= 255:
        raise ValueError(f"levels: found {levels}, expected 1 to 255")
    path, chosen = Path(path).expanduser(), dataset if patients is None else _some_of(dataset, tuple(patients))
    write_atomic(path, lambda part: _write(part, chosen, levels))
    return path


# %% [markdown]
# ## Reading, and trusting it
#
# A pack may come from a stranger. Nothing is unpickled, and nothing is unpacked before its claimed size is known to be
# the one that `dataset.json` names, so a few kilobytes cannot fill the memory. Every fault names file and member.

# %%
#| export
_MOST = {"dataset.json": 2**26, "array": 2**31}  # bytes that a member may claim
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError,
           HeaderDataError, WrapStructError, SyntaxError, TokenError)  # the last two: how NumPy reads its header


@contextmanager
def _named(where: object) -> Iterator[None]:
    "Raise DataError that says where for whatever a broken file raises."
    try:
        yield
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(where, f"something unreadable ({type(error).__name__}: {error})", "a whole pack") from error


# %%
#| export
def _check_seal(path: Path) -> None:
    "Raise DataError unless a file is a pack to its last byte."
    expected = "a pack, complete as `write_pack` wrote it"
    if not path.is_file():
        raise DataError(path, "a folder" if path.is_dir() else "no such file", expected)
    with _named(path):
        found, seal = _checksums(path)
    if len(seal) < _SEAL or not set(seal) <= set("0123456789abcdef"):
        raise DataError(path, "no checksum at its end", expected)
    if found != seal:
        raise DataError(path, f"bytes of SHA-256 {found}", f"{seal}, as its end says; copy it again")


# %%
#| export
def _unpacked(archive: zipfile.ZipFile, name: str, size: int | None) -> bytes:
    "A member's bytes, of that size where it is known. Raises DataError."
    where = f"{archive.filename}: {name}"
    if name not in archive.namelist():
        raise DataError(where, "no such member", "a whole pack")
    claimed = archive.getinfo(name).file_size
    if claimed > _MOST["dataset.json"] if size is None else claimed != size:
        expected = f"at most {_MOST['dataset.json']:,}" if size is None else f"{size:,}, as dataset.json says"
        raise DataError(where, f"{claimed:,} bytes claimed", expected)
    with _named(where):
        return archive.read(name)  # to its end, and so its CRC is looked at


# %% [markdown]
# An array's own header is looked at before it is believed.

# %%
#| export
def _npy_header(stream: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    "Shape, whether columns run fastest, and type of a .npy file; the stream then stands before the numbers."
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format .npy")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


# %%
#| export
def _array(archive: zipfile.ZipFile, name: str, member: _Member) -> np.ndarray:
    "An array of a pack, uint8. Raises DataError for another type, shape, size or checksum than dataset.json says."
    where, voxels = f"{archive.filename}: {name}", prod(member.shape)
    if member.size > (most := min(8 * voxels + 4096, _MOST["array"])):  # so that another type is called by its name
        raise DataError(where, f"{member.size:,} bytes in dataset.json", f"at most {most:,} for {voxels:,} voxels")
    data = _unpacked(archive, name, member.size)
    stream = BytesIO(data)
    with _named(where):
        shape, columns_first, dtype = _npy_header(stream)
    if dtype != np.uint8 or shape != member.shape or columns_first or len(data) - stream.tell() != voxels:
        raise DataError(where, f"{dtype} {shape}", f"uint8 {member.shape}, row by row")
    if (found := hashlib.sha256(data).hexdigest()) != member.sha256:
        raise DataError(where, f"SHA-256 {found}", member.sha256)
    return np.frombuffer(data, np.uint8, offset=stream.tell()).reshape(shape).copy()


# %%
#| export
def _case(archive: zipfile.ZipFile, scan: _Scan, levels: int) -> Case:
    "A case of a pack."
    name = f"{scan.patient}_{scan.frame}" if scan.frame else scan.patient
    where = f"{archive.filename}: {name}"
    if "image" not in scan.members:
        raise DataError(f"{where}: members", ", ".join(scan.members) or "none", "an image among them")
    arrays = {kind: _array(archive, f"{name}/{kind}.npy", member) for kind, member in scan.members.items()}
    image = _restored(_foretold(arrays["image"]), levels)
    shape = image.shape[0], *image.shape[-2:]
    grid = None if scan.grid is None else _grid(scan.grid, f"{where}: grid", shape)
    affine = None if scan.affine is None else np.array(scan.affine)
    return Case(scan.patient, scan.frame, image, scan.spacing_mm, affine, arrays.get("scribble"), arrays.get("label"),
                where, grid)


# %%
#| export
@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    "A pack's zip, open for reading. Raises DataError."
    with _named(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def _read_patient(patient: str, *, path: Path, contents: _Contents) -> list[Case]:
    "The cases of a patient."
    with _opened(path) as archive:
        return [_case(archive, scan, contents.levels) for scan in contents.scans if scan.patient == patient]


# %% [markdown]
# **Which data was it?** For the hashes of chapter 11 no array is unpacked: `dataset.json` holds the SHA-256 of each,
# which the seal covers. The number of levels belongs to an image, for the same steps of other levels are another one.

# %%
#| export
def _hashes(patient: str, *, contents: _Contents) -> dict[str, str]:
    "Kind of data → hash, as `file_hashes` gives it; a kind that a patient has none of is left out."
    found = dict[str, str]()
    for kind, levels in (("image", contents.levels), ("scribble", None), ("label", None)):
        named = [(scan.frame, scan.spacing_mm, levels, scan.members[kind].sha256) for scan in contents.scans
                 if scan.patient == patient and kind in scan.members]
        if named:
            found[f"{kind}s"] = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    return found


# %%
#| export
def _parsed(text: bytes, where: str) -> _Contents:
    "The content of dataset.json. Raises DataError that names the field."
    with _named(where):
        content = json.loads(text)
    found = content.get("pack") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise DataError(f"{where}: pack", found, f"{_FORMAT}, the format that this version of AttenScribble reads")
    try:
        return _Contents.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {place}", repr(first["input"])[:80], first["msg"]) from None


# %%
#| export
def pack(
    path: Path | str,  # a file that `write_pack` wrote
) -> Dataset:  # of the same name and folds; its version is the content's SHA-256, its source says that it is rounded
    """Open a pack. All of its bytes are compared with its checksum at once; images are read when they are asked for.

    Raises DataError, naming file and member, for a file that is no pack, not complete or damaged, of another format, or
    that contradicts itself; the same on reading."""
    path = Path(path).expanduser()
    _check_seal(path)
    with _opened(path) as archive:
        text = _unpacked(archive, "dataset.json", None)
    contents = _parsed(text, f"{path}: dataset.json")
    facts = {name: getattr(contents.dataset, name) for name in _Facts.model_fields}
    facts["source"] += _packed_at(contents.levels)
    facts["reading"] = {name: tuple(value) if isinstance(value, list) else value  # JSON knows lists alone
                        for name, value in contents.dataset.reading.items()}
    return Dataset(**facts, read=partial(_read_patient, path=path, contents=contents),
                   version=hashlib.sha256(text).hexdigest()[:16], content=partial(_hashes, contents=contents))


# %% [markdown]
# ## Check: there and back
#
# Every number of the phantom, by every way it could be lost.

# %%
file = write_pack(toy, work / "toy.pack.zip")
packed = pack(file)
for case, back in zip(toy.cases(), packed.cases(), strict=True):
    assert np.abs(case.image - back.image).max() <= 1 / 510 + 1e-6
    np.testing.assert_array_equal(case.scribble, back.scribble)
    np.testing.assert_array_equal(case.label, back.label)
    assert (case.name, case.spacing_mm) == (back.name, back.spacing_mm)
    np.testing.assert_array_equal(case.affine, back.affine)
assert packed.folds == toy.folds and packed.name == toy.name and packed.version
assert write_pack(toy, work / "again.pack.zip").read_bytes() == file.read_bytes()
print(f"{NAIVE:,} bytes before, {file.stat().st_size:,} now; {packed.source}")
assert file.stat().st_size < NAIVE / 2

# %% [markdown]
# It is a zip as any other, and NumPy alone can read it:

# %%
with np.load(file, allow_pickle=False) as opened:
    print(opened.files[:3], "…", opened.files[-1])
    rest = opened[f"{CASE.name}/image"]
steps = rest.cumsum(-1, dtype=np.uint8).cumsum(-2, dtype=np.uint8)
np.testing.assert_array_equal(next(packed.cases()).image, steps.astype(np.float32) / 255)

# %% [markdown]
# Then every kind of damage: a changed byte, a copy that broke off, another zip, and a file of a few hundred bytes that
# claims a gigabyte.

# %%
whole = file.read_bytes()

def refused_bytes(content, *words):
    "What is said of a file of these bytes."
    (work / "bad.pack.zip").write_bytes(content)
    return refused(lambda: list(pack(work / "bad.pack.zip").cases()), *words, folder=work)

print(refused_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:], "SHA-256", "copy it again"))
print(refused_bytes(whole[:-1000], "no checksum at its end"))
print(refused_bytes((work / "naive.npz").read_bytes(), "no checksum at its end"))


# %%
def forged(**members):
    "A sealed zip of these texts, zeros in their place where a number says how many."
    with zipfile.ZipFile(work / "forged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_json", ".json"), bytes(text) if isinstance(text, int) else text)
        archive.comment = b"0" * 64
    _seal(work / "forged.zip")
    return (work / "forged.zip").read_bytes()

bomb = forged(dataset_json=2**26 + 1)
print(f"{len(bomb):,} bytes:", refused_bytes(bomb, "67,108,865 bytes claimed"))
print(refused_bytes(forged(dataset_json='{"pack": 2}'), "dataset.json: pack: found 2, expected 1"))
print(refused_bytes(forged(readme="hello"), "dataset.json: found no such member"))

# %% [markdown]
# ## Real data: ACDC
#
# One patient, packed at three numbers of levels. One patient shows that the round trip works; the sizes of all 100 are
# in the tables above.

# %%
place = Path(os.environ.get("ATTENSCRIBBLE_DATA", "not set")) / "acdc/training"
if place.is_dir():
    real = acdc(place)
    one = list(real.cases(["patient001"]))
    for levels in (63, 127, 255):
        file = write_pack(real, work / "one.pack.zip", patients=["patient001"], levels=levels)
        worst = max(np.abs(a.image - b.image).max() for a, b in zip(one, pack(file).cases(), strict=True))
        print(f"{levels} levels: {file.stat().st_size:,} bytes, largest error {worst:.5f}")
        assert worst <= 0.5 / levels + 1e-6
else:
    print("skipped: needs ACDC; set ATTENSCRIBBLE_DATA to the folder that holds acdc/")


# %% [markdown]
# ## Exercises
#
# **1. Predict.** How many levels keep every intensity within half a percent of the range?

# %%
def check_levels(answer):
    assert 0.5 / answer() <= 0.005 < 0.5 / (answer() - 1)

def my_levels():
    return 255  # improve this

exercise(check_levels, my_levels, solution=lambda: 100)


# %% [markdown]
# **2. Implement** the way back for a picture of which only the differences along rows were stored, modulo 256.

# %%
def check_rows(back):
    steps = np.random.default_rng(1).integers(0, 256, (4, 6), dtype=np.uint8)
    assert (back(np.diff(steps, axis=1, prepend=np.uint8(0))) == steps).all()

def my_back(rest):
    return rest  # improve this

exercise(check_rows, my_back, solution=lambda rest: rest.cumsum(1, dtype=np.uint8))


# %% [markdown]
# **3. Break** a zip's own checks: change one byte of the packed phantom so that `zipfile` finds nothing wrong.

# %%
def check_unseen(change):
    content = change(bytes(whole))
    assert sum(a != b for a, b in zip(content, whole, strict=True)) == 1
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.testzip() is None
    print(refused_bytes(content, "SHA-256"))

def my_change(content):
    return content  # improve this

exercise(check_unseen, my_change, solution=lambda content: content[:10] + bytes([content[10] ^ 1]) + content[11:])

# %% [markdown]
# Byte 10 belongs to the time at which the first member was changed, and no checksum of a zip covers it.
#
# ## Recap
#
# Exported: `write_pack` and `pack`. `open_dataset("acdc", root="acdc.pack.zip")` opens a pack as if it were the folder,
# and `attenscribble pack` writes one. What may surprise: what a pack weighs is mostly noise.
