"""Every reader of the package: files that are right, how each may be changed, what it loads, and what is right."""

import importlib
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import torch
from PIL import Image

from attenscribble.data.chaos import CHAOS_CLASSES, chaos, write_slice
from attenscribble.data.folder import IGNORE, folder
from attenscribble.data.scans import Case, Dataset, acdc, wsl4mis
from attenscribble.reporting.tables import read_results, results_table
from attenscribble.runs.config import OPEN, Config
from attenscribble.runs.inference import load_network
from attenscribble.runs.run import run_experiment
from attenscribble.runs.setup import resolve
from attenscribble.runs.training import make_store, start_training
from tools.trust import children
from tools.trust import mutators as change
from tools.trust import oracles as right
from tools.trust.kills import TINY
from tools.trust.oracles import Refuse, differ, need

SHAPE = (6, 24, 20)  # z, y, x
Mutator = Callable[[Path, np.random.Generator], str]


@dataclass(frozen=True)
class Reader:
    "A kind of input."

    name: str
    make: Callable[[Path], None]  # writes files that are right
    files: Sequence[tuple[str, tuple[Mutator, ...]]]  # pattern → what may happen to such a file
    load: Callable[[Path], Any]  # by the package
    compare: Callable[[Any, Path], None]  # with the oracle: raises `Refuse`, or AssertionError for a difference


# ---- NIfTI

NAMES = ("background", "RV", "Myo", "LV")
MEANING = {"labels": dict(zip(NAMES, range(4), strict=True)), "ignore": 255}


def _volumes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Image, scribble (9 where not drawn) and label, [Z,Y,X]."
    chance = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    label = np.select([np.hypot(y - 12, x - 8) < 3, np.hypot(y - 12, x - 8) < 5, np.hypot(y - 12, x - 14) < 3],
                      [3, 2, 1]).astype(np.uint8)
    image = (np.array([200, 600, 300, 700])[label] + chance.normal(0, 40, SHAPE) + 5 * z).clip(0).astype(np.int16)
    drawn = chance.random(SHAPE) < 0.15
    drawn[:, 12, 8], drawn[:, 12, 14], drawn[:, 12, 4], drawn[:, 2, 2] = True, True, True, True
    return image, np.where(drawn, label, 9).astype(np.uint8), label


def _save(path: Path, volume: np.ndarray, tilt: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    c, s = math.cos(tilt), math.sin(tilt)
    turn = np.array([[c, -s, 0, 10], [s, c, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1]])
    scan = nib.Nifti1Image(np.ascontiguousarray(volume.T), turn @ np.diag([-1.5, -1.25, 8, 1]))
    scan.set_qform(scan.affine, 1)
    scan.set_sform(scan.affine, 1)
    scan.header.set_xyzt_units("mm")
    nib.save(scan, path)


def _make_folder(home: Path) -> None:
    for number, (name, ending, tilt) in enumerate((("a", "nii.gz", 0.0), ("b", "nii", 0.1), ("c", "nii.gz", 0.2))):
        image, scribble, label = _volumes(number)
        _save(home / f"images/{name}.{ending}", image, tilt)
        _save(home / f"scribbles/{name}.{ending}", np.where(scribble == 9, 255, scribble).astype(np.uint8), tilt)
        _save(home / f"labels/{name}.{ending}", label, tilt)
    (home / "dataset.json").write_text(json.dumps(MEANING | {"folds": 3, "reference": "made up"}))


def _load_folder(home: Path) -> tuple[Dataset, list[Case]]:
    dataset = folder(home)
    return dataset, list(dataset.cases())


def _compare_folder(loaded: tuple[Dataset, list[Case]], home: Path) -> None:
    dataset, cases = loaded
    said = right.json_of(home / "dataset.json")
    need(isinstance(said, dict), "no object")
    scale = said.get("axis", "auto"), said.get("check_affine", True)
    files = {path.name.split(".nii")[0]: path for path in (home / "images").iterdir()}
    differ({case.name for case in cases} != files.keys() and not said.get("patient"), "scans are missing")
    for case in cases:
        path = files[Path(case.source).name.split(".nii")[0]]
        voxels, affine, _ = right.usable_scan(path)
        right.same_sizes(case.spacing_mm, affine)
        right.same_look(case.image, right.same_place(case.image, case.affine, voxels, affine))
        for kind, mine in (("scribbles", case.scribble), ("labels", case.label)):
            mask = home / kind / path.name
            if mine is not None and mask.is_file():
                _compare_mask(mine, case, mask, path, said, dataset, scale[1], kind)


def _compare_mask(mine: np.ndarray, case: Case, mask: Path, image: Path, said: dict, dataset: Dataset, checked: Any,
                  kind: str) -> None:
    "A mask lies where its own header says, unless that says nothing or is not asked."
    values, affine, facts = right.nifti(mask)
    scan, scan_affine, scan_facts = right.usable_scan(image)
    if not (facts["placed"] and scan_facts["placed"]) or checked is False:
        affine = scan_affine
    values = values.reshape(scan.shape) if values.size == scan.size else values
    there = right.same_place(mine, case.affine, values, affine)
    told = said if kind == "scribbles" else {name: value for name, value in said.items() if name != "ignore"}
    right.same_strokes(mine, dataset.class_names, IGNORE, there, told)


def _make_acdc(home: Path) -> None:
    for number in (1, 21):
        patient = f"patient{number:03d}"
        image, scribble, label = _volumes(number)
        for end, volume in (("", image), ("_gt", label), ("_scribble", np.where(scribble == 9, 4, scribble))):
            _save(home / patient / f"{patient}_frame01{end}.nii.gz", volume.astype(np.uint8) if end else volume)


def _load_acdc(home: Path) -> list[Case]:
    return list(acdc(home).cases())


def _compare_acdc(cases: list[Case], home: Path) -> None:
    for case in cases:
        path = home / case.patient / f"{case.name}.nii.gz"
        voxels, affine, facts = right.usable_scan(path)
        right.same_sizes(case.spacing_mm, affine)
        differ(not np.allclose(case.affine, affine, atol=1e-3), "another affine")
        there = right.same_place(case.image, case.affine, voxels, affine)
        right.same_look(case.image, there, contrast=False)
        for end, mine in (("_gt", case.label), ("_scribble", case.scribble)):
            values, mask_affine, mask_facts = right.nifti(path.with_name(f"{case.name}{end}.nii.gz"))
            values = right.three_axes(values)
            need(values.shape == voxels.shape, "another shape")
            placed = mask_facts["placed"] and facts["placed"]
            there = right.same_place(mine, case.affine, values, mask_affine if placed else affine)
            need(np.isin(there, range(5 if end == "_scribble" else 4)).all(), "other values")
            differ(not np.array_equal(mine, there), f"other values in {end}")


# ---- HDF5 and the table of voxel sizes

def _make_h5(home: Path) -> None:
    table = {}
    for number in (1, 21, 41):
        name = f"patient{number:03d}"
        image, scribble, label = _volumes(number)
        arrays = {"image": (image / image.max()).astype(np.float32), "label": label,
                  "scribble": np.where(scribble == 9, 4, scribble).astype(np.uint16)}
        table[name] = [1.5, 1.25, 8.0]
        parts = range(SHAPE[0]) if number == 41 else (None,)  # one patient as single slices
        for z in parts:
            with h5py.File(home / f"{name}_frame01{'' if z is None else f'_slice_{z}'}.h5", "w") as file:
                for key, array in arrays.items():
                    file[key] = array if z is None else array[z]
    (home / "spacing_mm.json").write_text(json.dumps(table))


def _load_h5(home: Path) -> list[Case]:
    return list(wsl4mis(home, home / "spacing_mm.json").cases())


def _compare_h5(cases: list[Case], home: Path) -> None:
    table = right.json_of(home / "spacing_mm.json")
    differ(len(cases) != 3, "patients are missing")
    for case in cases:
        _compare_spacing(case, table)
        for key, mine in (("image", case.image), ("scribble", case.scribble), ("label", case.label)):
            there = _h5_array(home, case.name, key)
            if there is None:
                differ(mine is not None, f"{key} from nowhere")
                continue
            need(there.dtype.kind in "iufb", f"{there.dtype}")
            need(there.dtype.kind != "b" or key != "image", "truth values")
            inside = np.isfinite(there).all() and there.min() >= 0 and there.max() <= 1 if there.size else False
            need(key != "image" or inside, "not in [0, 1]")
            need(key == "image" or np.isin(there, range(5 if key == "scribble" else 4)).all(), "other values")
            differ(mine is None or not np.array_equal(mine, there.astype(mine.dtype)), f"another {key}")
            need(key != "image" or there.min() < there.max(), "no contrast")


def _h5_array(home: Path, name: str, key: str) -> np.ndarray | None:
    whole = home / f"{name}.h5"
    parts = [whole] if whole.is_file() else [home / f"{name}_slice_{z}.h5" for z in range(SHAPE[0])]
    arrays = [right.h5(path) for path in parts]
    found = [array[key] for array in arrays if key in array]
    need(not found or (len(found) == len(parts) and len({array.shape for array in found}) == 1), "slices that differ")
    need(key != "image" or found, "no image")
    return None if not found else found[0] if whole.is_file() else np.stack(found)


def _compare_spacing(case: Case, table: Any) -> None:
    need(isinstance(table, dict), "no object")
    entry = table.get(case.name, table.get(case.patient))
    need(isinstance(entry, list) and len(entry) == 3, "no three numbers")
    need(all(type(mm) in (int, float) and 1e-3 < mm < 1e4 for mm in entry), f"{entry}")
    differ(tuple(case.spacing_mm or ()) != tuple(float(mm) for mm in reversed(entry)), f"{case.spacing_mm} of {entry}")


# ---- DICOM and PNG

GRAYS = (0, 63, 126, 189, 252)  # of CHAOS's labels: background and its organs


def _make_chaos(home: Path) -> None:
    chance = np.random.default_rng(5)
    for number in (1, 15):
        base = home / f"Train_Sets/MR/{number}/T1DUAL"
        label = np.kron(np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 4, 0]], np.uint8), np.ones((8, 6), np.uint8))
        for z in range(4):
            gray = (np.array([100, 500, 300, 400, 600])[label] + chance.normal(0, 20, label.shape) + 9 * z).clip(0)
            for phase in ("InPhase", "OutPhase"):
                write_slice(base / f"DICOM_anon/{phase}/IMG-0001-{2 * z + 1 + (phase == 'InPhase'):05d}.dcm",
                            gray.astype(np.uint16), (-30.0, -40.0, 7.0 * z), spacing_mm=(1.5, 1.75),
                            SeriesInstanceUID=f"1.2.{number}", SliceThickness=7.0)
            ground = base / "Ground"
            ground.mkdir(exist_ok=True)
            Image.fromarray(np.array(GRAYS, np.uint8)[label]).save(ground / f"IMG-0001-{2 * z + 2:05d}.png")


def _load_chaos(home: Path) -> list[Case]:
    return list(chaos(home, scribbles="none").cases())


def _compare_chaos(cases: list[Case], home: Path) -> None:
    for case in cases:
        base = home / f"Train_Sets/MR/{int(case.patient[5:])}/T1DUAL"
        slices = right.dicom_slices(base / "DICOM_anon/InPhase")
        differ(len(slices) != len(case.image), f"{len(case.image)} of {len(slices)} slices")
        raw, truth = np.zeros(case.image.shape), np.full(case.image.shape, 255)
        for name, pixels, place in slices:
            z, rows, columns = _slice_place(case, pixels, place)
            raw[z, rows, columns] = pixels
            grays = right.png(base / f"Ground/{name}.png").astype(int)
            need(grays.shape == pixels.shape, "another shape")
            truth[z, rows, columns] = np.select([(grays >= g - 8) & (grays <= g + 12) for g in GRAYS], range(5), 99)
        right.same_look(case.image, raw, contrast=False)
        need((truth < len(CHAOS_CLASSES)).all(), "grays of no organ")
        differ(case.label is None or not np.array_equal(case.label, truth), "another label")


def _slice_place(case: Case, pixels: np.ndarray, place: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    "Where the pixels of a slice lie in the case: found through millimetres."
    rows, columns = np.indices(pixels.shape)
    mm = place @ np.stack([columns.ravel(), rows.ravel(), np.ones(pixels.size)])
    here = (np.linalg.inv(case.affine) @ np.vstack([mm, np.ones(pixels.size)]))[:3]
    near = np.rint(here).astype(int)
    differ(np.abs(here - near).max() > 0.25, "a slice lies elsewhere")
    differ(len(set(near[2])) > 1, "a slice is cut across")
    inside = (near >= 0).all() and (near < np.array(case.image.shape)[::-1, None]).all()
    differ(not inside, "a slice lies outside")
    return int(near[2, 0]), near[1].reshape(pixels.shape), near[0].reshape(pixels.shape)


# ---- checkpoints, results, guessed labels

@cache
def _finished() -> tuple[Path, Config]:
    "A tiny run that is over; its settings. It lies in a temporary folder until this process ends."
    home = Path(tempfile.mkdtemp(prefix="trust-"))
    config = Config(**TINY | {"method": "ustm", "output": str(home / "runs"), "archive": str(home / "archive")})
    ended = children.run(lambda: run_experiment(config) and None)
    if ended.error:
        raise RuntimeError(f"a run that nobody disturbed failed: {ended.error}")
    return home, config


@cache
def _content() -> dict[str, Any]:
    home, config = _finished()
    return torch.load(home / "runs" / config.run_id / "checkpoint.pt", weights_only=True)


def _make_checkpoint(home: Path) -> None:
    base, config = _finished()
    shutil.copyfile(base / "runs" / config.run_id / "checkpoint.pt", home / "checkpoint.pt")


def _load_checkpoint(home: Path) -> dict[str, Any]:
    "As `predict` reads it, and as a run does that goes on."
    network = load_network(home / "checkpoint.pt", "cpu")
    state = start_training(_setup())
    state.load(home / "checkpoint.pt")
    return {"tested": network.model.state_dict(), "model": state.model.state_dict(), "step": state.step,
            "seconds": state.seconds, "log": state.log, "teacher": state.teacher.state_dict()}


@cache
def _setup() -> Any:
    return resolve(_finished()[1])


def _compare_checkpoint(loaded: dict[str, Any], home: Path) -> None:
    path = home / "checkpoint.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            need(archive.testzip() is None, "a checksum is wrong")
        content = torch.load(path, weights_only=True)
    except Refuse:
        raise
    except Exception as error:
        raise Refuse(f"torch: {error}") from None
    need(isinstance(content, dict), "no parts")
    need({"seal", *content} == _content().keys(), "other parts")  # older files have no seal
    for part in ("model", "teacher"):
        need(_finite(content[part]), f"{part} is not finite")
        differ(not _equal(loaded[part], content[part]), f"another {part}")
    differ(not _equal(loaded["tested"], content["model"]), "other weights in prediction")
    need(type(content["step"]) is int and 0 <= content["step"] <= TINY["iterations"], f"step {content['step']}")
    need(type(content["seconds"]) in (int, float) and 0 <= content["seconds"] < 1e9, "seconds")
    differ(loaded["step"] != content["step"], "another step")


def _finite(part: Any) -> bool:
    return isinstance(part, dict) and all(
        bool(torch.isfinite(value).all()) for value in part.values() if torch.is_tensor(value))


def _equal(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    "NaN is equal to NaN."
    return mine.keys() == theirs.keys() and all(
        torch.is_tensor(theirs[name]) and mine[name].shape == theirs[name].shape and bool(
            torch.allclose(mine[name].double(), theirs[name].double(), rtol=0, atol=0, equal_nan=True))
        for name in mine)


def of_checkpoint(path: Path, chance: np.random.Generator) -> str:
    "A part removed, a number spoilt, a tensor of another shape, written as PyTorch writes it."
    content = torch.load(path, weights_only=True)
    part = change.pick(chance, sorted(content))
    act = change.pick(chance, ("remove", "odd", "inside", "inside", "inside"))
    inner = content[part]
    if act == "remove":
        del content[part]
    elif act == "odd" or not isinstance(inner, dict) or not inner:
        content[part] = change.pick(chance, change.ODD_VALUES)
    else:
        name = change.pick(chance, sorted(inner, key=str))
        inner[name] = _spoilt(inner[name], chance)
        part = f"{part}.{name}"
    torch.save(content, path)
    return f"{act} {part}"


def _spoilt(value: Any, chance: np.random.Generator) -> Any:
    if not torch.is_tensor(value) or chance.random() < 0.2:
        return change.pick(chance, change.ODD_VALUES)
    value = value.clone()
    act = change.pick(chance, ("nan", "shape", "type", "empty"))
    if act == "nan" and value.is_floating_point() and value.numel():
        value.ravel()[int(chance.integers(value.numel()))] = float(change.pick(chance, ("nan", "inf")))
        return value
    return {"shape": value.reshape(-1)[:-1], "type": value.to(torch.complex64), "empty": value.new_empty(0)}.get(
        act, value.reshape(1, *value.shape))


def _make_results(home: Path) -> None:
    base, config = _finished()
    content = json.loads((base / "archive" / f"{config.run_id}.json").read_text())
    (home / "one.json").write_text(json.dumps(content))
    (home / "two.json").write_text(json.dumps(content | {
        "run": content["run"].replace("seed2022", "seed2023"), "seed": 2023}))


def _load_results(home: Path) -> list[dict[str, Any]]:
    results = read_results(home)
    results_table(home)
    return results


def _compare_results(results: list[dict[str, Any]], home: Path) -> None:
    files = [right.json_of(path) for path in sorted(home.glob("*.json"))]
    need(all(isinstance(content, dict) for content in files), "no object")
    for content in files:
        kinds = {"run": str, "dataset": str, "method": str, "profile": str, "preset": str, "fold": int, "seed": int,
                 "cases": list, "settings": dict}
        for name, kind in kinds.items():
            need(type(content.get(name)) is kind, f"{name}")
        need(type(content.get("test_volumes", 0)) is int, "test_volumes")  # older files do not have it
        _complete(content)
        twin = [found for found in results if found["run"] == content["run"]]
        differ(len(twin) != 1 or twin[0]["cases"] != content["cases"], "other scores")


def _complete(content: dict[str, Any]) -> None:
    "Every volume has one row for each class and policy, with numbers that can be."
    rows = content["cases"]
    need(rows and all(isinstance(row, dict) for row in rows), "no rows")
    try:
        keys = [(row["case"], row["class"], row["policy"]) for row in rows]
        numbers = [(row["dsc"], row["hd95_mm"]) for row in rows]
    except KeyError as error:
        raise Refuse(f"a row without {error}") from None
    need(all(isinstance(part, str) for key in keys for part in key), "a name that is no text")
    sides = [set(side) for side in zip(*keys, strict=True)]
    need(len(set(keys)) == len(keys) == math.prod(map(len, sides)), "rows missing or double")
    need(len(sides[0]) == content.get("test_volumes", len(sides[0])), "volumes missing")
    for dsc, hd95 in numbers:
        need(dsc is None or (type(dsc) in (int, float) and 0 <= dsc <= 1), f"DSC {dsc}")
        need(hd95 is None or (type(hd95) in (int, float) and 0 <= hd95 < math.inf), f"HD95 {hd95}")


@cache
def _walk() -> tuple[Any, tuple[str, ...]]:
    "Settings and patients of a training with labels of a random walker."
    setup = resolve(Config(**TINY | {"method": "random-walker", "data_slices": 1}))
    return setup, setup.dataset.patients[:1]


def _guesses(home: Path) -> bytes:
    "The guessed labels, with a folder as the cache."
    setup, patients = _walk()
    before = os.environ.get("ATTENSCRIBBLE_CACHE")
    os.environ["ATTENSCRIBBLE_CACHE"] = str(home)
    try:
        store = make_store(setup, patients)
        setup.method.pseudo(store, setup.objective.options, setup.config.size)
        return bytes(store._pseudo.numpy().tobytes())
    finally:
        os.environ.pop("ATTENSCRIBBLE_CACHE")
        os.environ |= {} if before is None else {"ATTENSCRIBBLE_CACHE": before}


@cache
def _fresh_guesses() -> bytes:
    with tempfile.TemporaryDirectory() as home:
        return _guesses(Path(home))


def _compare_guesses(loaded: bytes, home: Path) -> None:
    differ(loaded != _fresh_guesses(), "other labels than made anew")


def of_npz(path: Path, chance: np.random.Generator) -> str:
    "Another array, in a file that is whole."
    with np.load(path) as file:
        labels = file["labels"]
    act = change.pick(chance, ("renamed", "shape", "type", "values", "objects", "empty"))
    new = {"shape": labels[:-1], "type": labels.astype(np.float32) + 0.5, "values": np.full_like(labels, 200),
           "objects": np.array([{}], object), "empty": labels[:0]}.get(act, labels)
    np.savez_compressed(path, **{"other" if act == "renamed" else "labels": new})
    return act


# ---- settings

def _random_settings(home: Path) -> dict[str, Any]:
    return json.loads((home / "settings.json").read_text())


def of_settings(path: Path, chance: np.random.Generator) -> str:
    "One to three settings with odd values, near misses of a name, dictionaries as YAML has them."
    fields = [*Config.model_fields, "lam_mcrf", "lam_atn", "start_atn", "data_patients", "method_passes", "net_options",
              "itterations", "siez", "lam_", "data", "crf", "asl", "_", "ROOT", "learning rate"]
    given = {change.pick(chance, fields): change.pick(chance, (*change.ODD_VALUES, 16, 32, 0.3, "0.3", "true", "12",
                                                               {"mask": "p"}, {"mcrf": 0.2}, {"mcrff": 1}, [0, 1]))
             for _ in range(int(chance.integers(1, 4)))}
    path.write_text(json.dumps(given))
    return json.dumps(given)[:200]


def _load_settings(home: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    given = _random_settings(home)
    config = Config(**given)
    assert config.run_id
    again = Config(**json.loads(json.dumps(config.model_dump())))
    return given, config.flat() | {"=": again == config}


def _compare_settings(loaded: tuple[dict[str, Any], dict[str, Any]], home: Path) -> None:
    given, flat = loaded
    differ(not flat.pop("="), "written and read, the settings are others")
    for name, value in flat.items():
        differ(isinstance(value, float) and not math.isfinite(value), f"{name} is {value}")
    for name, value in _flattened(given).items():
        group = name in OPEN.values() or (name.partition("_")[0] in OPEN and name.partition("_")[2])
        need(name in flat or (value in (None, {}) and (group or value == {})), f"{name} is no setting")
        found = flat.get(name)
        differ(value not in (None, {}) and not _means(value, found), f"{name}: {value!r} became {found!r}")


def _flattened(given: dict[str, Any]) -> dict[str, Any]:
    groups = {"method_options": "method"}
    known = {*Config.model_fields} - {"lam", "start", "ramp", "method_options", "data"}
    found: dict[str, Any] = {}
    for name, value in given.items():
        inner = value if isinstance(value, dict) and name not in known else None
        found |= {name: value} if inner is None else {f"{groups.get(name, name)}_{key}": entry
                                                       for key, entry in inner.items()}
    return found


def _means(given: Any, found: Any) -> bool:
    "Whether a setting is what was given, or what its text says."
    if given == found or str(given).lower() == str(found).lower():
        return True
    try:
        return not isinstance(given, bool) and math.isclose(float(given), float(found))
    except (TypeError, ValueError, OverflowError):
        try:
            return bool(json.loads(given) == found)
        except (TypeError, ValueError, RecursionError):
            return isinstance(found, tuple) and list(found) == given


# ---- packs, where this version has them

def _packs() -> list[Reader]:
    try:
        module: Any = importlib.import_module("attenscribble.data.pack")
    except ImportError:
        return []

    def make(home: Path) -> None:
        with tempfile.TemporaryDirectory() as source:
            _make_acdc(Path(source))
            module.write_pack(acdc(source), home / "acdc.pack.zip")

    def load(home: Path) -> list[Case]:
        return list(module.pack(home / "acdc.pack.zip").cases())

    @cache
    def pristine() -> list[Case]:
        with tempfile.TemporaryDirectory() as home:
            make(Path(home))
            return load(Path(home))

    def compare(cases: list[Case], home: Path) -> None:
        "A pack is sealed: what is loaded at all is what was packed."
        for one, other in zip(cases, pristine(), strict=True):
            for part in ("image", "scribble", "label", "affine"):
                differ(not np.array_equal(getattr(one, part), getattr(other, part)), f"another {part}")
            differ((one.name, one.spacing_mm) != (other.name, other.spacing_mm), "another name or voxel size")

    return [Reader("pack", make, [("*.zip", (change.of_bytes,))], load, compare)]


BYTES = (change.of_bytes, change.of_bytes, change.swap_files)
NIFTI = (change.of_nifti, change.of_nifti, change.of_nifti, change.of_gzip, *BYTES)
PLAIN = (change.of_nifti, change.of_nifti, *BYTES)
READERS = {reader.name: reader for reader in (
    Reader("folder", _make_folder, [("images/*.gz", NIFTI), ("scribbles/*.gz", NIFTI), ("labels/*.gz", NIFTI),
                                    ("images/*.nii", PLAIN), ("scribbles/*.nii", PLAIN)],
           _load_folder, _compare_folder),
    Reader("dataset.json", _make_folder, [("dataset.json", (change.of_json, change.of_json, change.of_bytes))],
           _load_folder, _compare_folder),
    Reader("acdc", _make_acdc, [("patient*/*01.nii.gz", NIFTI), ("patient*/*_*_*.nii.gz", NIFTI)], _load_acdc,
           _compare_acdc),
    Reader("h5", _make_h5, [("*01.h5", (change.of_h5, *BYTES)), ("*slice*.h5", (change.of_h5, *BYTES))], _load_h5,
           _compare_h5),
    Reader("spacing", _make_h5, [("*.json", (change.of_json, change.of_json, change.of_bytes))], _load_h5, _compare_h5),
    Reader("chaos", _make_chaos, [("**/InPhase/*.dcm", (change.of_dicom, change.of_dicom, *BYTES)),
                                  ("**/*.png", (change.of_png, *BYTES))], _load_chaos, _compare_chaos),
    Reader("checkpoint", _make_checkpoint, [("*.pt", (of_checkpoint, change.of_bytes))], _load_checkpoint,
           _compare_checkpoint),
    Reader("results", _make_results, [("*.json", (change.of_json, change.of_json, change.of_json, change.of_bytes))],
           _load_results, _compare_results),
    Reader("guesses", _guesses, [("**/*.npz", (of_npz, *BYTES))], _guesses, _compare_guesses),
    Reader("settings", lambda home: (home / "settings.json").write_text("{}"), [("*.json", (of_settings,))],
           _load_settings, _compare_settings),
    *_packs())}
