"""Circles on masks drawn by hand, the network's sketch, and panels made from run folders."""

import json

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from test_train_notebook import output_text, papermill
from torch import nn

from attenscribble.basics.drawing import draw
from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_json
from attenscribble.data.datasets import open_dataset
from attenscribble.method.network import UNet2d
from attenscribble.method.ssa import attach
from attenscribble.reporting.figures import (
    _MARGIN_PX,
    anatomy,
    circles,
    dataset_of,
    draw_circles,
    find_runs,
    picture_folder,
    plot_architecture,
    plot_methods,
)
from attenscribble.runs.inference import save_mask
from attenscribble.runs.metrics import POLICIES, score_case
from attenscribble.runs.run import median_case

matplotlib.use("agg")
OPTIONS = {"patients": 5, "side": 48, "slices": 4}


# ---- circles


def blank(*blocks):
    "A 20×30 mask with blocks (class, rows, columns)."
    mask = np.zeros((20, 30), np.uint8)
    for value, rows, columns in blocks:
        mask[rows, columns] = value
    return mask


def test_a_false_positive_and_a_false_negative():
    mask, label = blank((1, slice(2, 7), slice(3, 10))), blank((2, slice(12, 15), slice(20, 23)))
    positive, negative = circles(mask, label, min_px=9)
    assert (positive.kind, positive.y, positive.x, positive.pixels) == ("false positive", 4, 6, 35)
    assert positive.radius == pytest.approx(np.hypot(2, 3) + _MARGIN_PX)
    assert (negative.kind, negative.y, negative.x, negative.pixels) == ("false negative", 13, 21, 9)
    assert [circle.pixels for circle in circles(mask, label, min_px=10)] == [35]


def test_what_is_right_or_thin_gets_no_circle():
    label = blank((1, slice(5, 15), slice(5, 25)))
    rim = blank((1, slice(3, 17), slice(3, 27)))  # two pixels too large all around
    assert circles(label, label, 1) == [] and circles(rim, label, 1) == []
    assert [c.kind for c in circles(blank((1, slice(2, 18), slice(2, 28))), label, 1)] == ["false positive"]  # three


def test_a_confused_class_is_a_false_positive_only():
    block = slice(5, 10), slice(5, 10)
    assert [c.kind for c in circles(blank((1, *block)), blank((2, *block)))] == ["false positive"]


def test_regions_join_over_corners_and_only_the_largest_stay():
    corner = blank((1, slice(2, 5), slice(2, 5)), (1, slice(5, 8), slice(5, 8)))
    assert [c.pixels for c in circles(corner, blank(), 1)] == [18]
    three = blank((1, slice(1, 4), slice(1, 4)), (1, slice(6, 10), slice(1, 5)), (1, slice(12, 17), slice(1, 6)))
    assert [c.pixels for c in circles(three, blank(), 1, most=2)] == [25, 16]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mask: found shape \(20, 30\), expected \[Y,X\] as the label's \(3, 3\)"):
        circles(blank(), np.zeros((3, 3)))


def test_circles_are_drawn_where_they_are_and_move_no_limits():
    axis = matplotlib.figure.Figure().add_subplot()
    draw(axis, blank(), outline=blank((1, slice(5, 9), slice(5, 9))))
    draw_circles(axis, circles(blank((1, slice(0, 5), slice(0, 5))), blank((1, slice(12, 18), slice(20, 26))), 1))
    solid, dashed = axis.patches
    assert solid.center == (2, 2) and dashed.center == (22.5, 14.5) and axis.axis() == (-0.5, 29.5, 19.5, -0.5)
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_edgecolor() != dashed.get_edgecolor()


# ---- the network


def network(*where, **options):
    model = UNet2d(1, 4, channels=(4, 8, 16), dropout=(0, 0, 0))
    if where:
        attach(model, *where, **options)
    return model


def test_sizes_come_from_a_forward_pass():
    found = anatomy(network("encoder.1", heads=2), 32)
    assert found.sizes == {"encoder.0": (4, 32, 32), "encoder.1": (8, 16, 16), "encoder.2": (16, 8, 8),
                           "decoder.0": (8, 16, 16), "decoder.1": (4, 32, 32), "head": (4, 32, 32)}
    assert (found.attended, found.where, found.query) == ("encoder.1", "output", (2, 256, 4))


@pytest.mark.parametrize(("place", "options", "expected"), [
    (("encoder.2",), {"where": "input"}, ("encoder.2", "input", False)),
    (("decoder.1",), {}, ("decoder.1", "output", False)),
    (("encoder.1",), {"separate": True}, ("encoder.1", "output", True)),
    (("encoder.0.0",), {}, ("encoder.0", "inside", False)),
    (("head",), {}, ("head", "output", False)),
    ((), {}, ("", "", False)),
])
def test_the_attention_is_found_and_drawn_where_it_is_attached(place, options, expected):
    model = network(*place, **options)
    found = anatomy(model, 32)
    assert (found.attended, found.where, found.separate) == expected
    text = "\n".join(item.get_text() for item in plot_architecture(model, 32).axes[0].texts)
    assert (f"{found.where} of {found.attended}" in text) == bool(place)
    assert ("attentive similarity" in text) == ("similarity S" in text) == bool(place)
    assert "16\n8²" in text and "partial cross-entropy" in text and "masked CRF" in text


def test_drawing_leaves_the_network_as_it_was():
    model = network("encoder.1").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plot_architecture(model, 32)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="model: found Linear without encoder, decoder, head"):
        plot_architecture(nn.Linear(1, 1))


def test_attention_elsewhere_moves_its_box():
    def middle(*place):
        figure = plot_architecture(network(*place), 32)
        (text,) = [item for item in figure.axes[0].texts if item.get_text().startswith("self-attention")]
        return text.get_position()

    first, second = middle("encoder.0"), middle("encoder.1")
    assert first[1] > second[1] and middle("decoder.0")[0] > second[0]


# ---- panels from run folders


def damage(label, method):
    "`ours` is right; others lose class 3, and `pce` claims a block besides."
    mask = label.copy() if method == "ours" else np.where(label == 3, 0, label).astype(np.uint8)
    if method == "pce":
        mask[:, :8, :8] = 1
    return mask


def make_run(folder, dataset, method, **changes):
    "A run folder as training leaves it, without the training."
    facts = {"dataset": "phantom", "method": method, "title": method.upper(), "fold": 1, "seed": 1, "profile": "smoke",
            "preset": "paper", "checkpoint": "last", "train_seconds": 1.0, "settings": {}} | changes
    facts["run"] = "-".join(str(facts[name]) for name in ("method", "fold", "seed", "profile", "preset"))
    rows = []
    for case in dataset.cases(dataset.split(1)[1]):
        mask = damage(case.label, method)
        save_mask(mask, case, folder / facts["run"] / "masks" / f"{case.name}.nii.gz")
        for policy in POLICIES:
            rows += score_case(mask, case.label, case.spacing_mm, dataset.class_names, policy=policy, case=case.name)
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    write_json({"dataset": "phantom", "root": "", "data": OPTIONS}, folder / facts["run"] / "config.json")
    write_json({**facts, "cases": rows}, folder / facts["run"] / "result.json")
    return folder / facts["run"]


@pytest.fixture
def phantom():
    return open_dataset("phantom", **OPTIONS)


def test_one_run_a_method_in_the_papers_order(tmp_path, phantom):
    for method in ("ours", "pce", "fully"):
        make_run(tmp_path, phantom, method)
    make_run(tmp_path, phantom, "ours", seed=0)
    make_run(tmp_path, phantom, "ours", profile="fast")
    make_run(tmp_path, phantom, "ustm", fold=2)
    make_run(tmp_path, phantom, "ours", preset="released")
    (tmp_path / "unfinished").mkdir()
    runs = find_runs(tmp_path, "phantom", preset="paper")
    assert [run.folder.name for run in runs] == ["fully-1-1-smoke-paper", "pce-1-1-smoke-paper", "ours-1-0-smoke-paper"]
    assert [run.result["preset"] for run in find_runs(tmp_path, "phantom")][-2:] == ["paper", "released"]
    assert [run.result["run"] for run in find_runs(tmp_path, "phantom", profile="fast")] == ["ours-1-1-fast-paper"]
    assert find_runs(tmp_path, "acdc") == [] and find_runs(tmp_path / "nowhere", "phantom") == []


def test_masks_come_back_on_the_scans_grid_and_a_wrong_one_is_named(tmp_path, phantom):
    folder = make_run(tmp_path, phantom, "pce")
    (run,) = find_runs(tmp_path, "phantom")
    case = next(phantom.cases())
    np.testing.assert_array_equal(run.mask(case), damage(case.label, "pce"))
    path = folder / "masks" / f"{case.name}.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    with pytest.raises(DataError, match=r"nii\.gz: found shape \(2, 2, 2\), expected the scan's"):
        run.mask(case)
    path.unlink()
    with pytest.raises(DataError, match=r"nii\.gz: found no such file"):
        run.mask(case)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json: data"):
        find_runs(tmp_path, "phantom")


def test_the_panels(tmp_path, phantom):
    for method in ("ours", "pce", "ustm"):
        make_run(tmp_path, phantom, method)
    runs = find_runs(tmp_path, "phantom")
    figure = plot_methods(runs, dataset_of(runs[0]), columns=4, min_px=9)
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title().split("\n")[0] for axis in panels]
    assert titles == ["image", "scribble (not used here)", "truth", "PCE", "USTM", "OURS"]
    kinds = [{patch.get_linestyle() for patch in axis.patches} for axis in panels[3:]]
    assert all(axis.collections for axis in panels[3:])  # the true outline
    assert kinds == [{"-", "--"}, {"--"}, set()]
    assert "DSC 1.00, HD95 0.0 mm" in panels[5].get_title()
    for part in ("phantom, patient001_frame", "median score over the methods", "policy standard", "at least 9 px"):
        assert part in figure.get_suptitle().replace("\n", " ")
    assert len(figure.legends) == 1
    with pytest.raises(ValueError, match="runs: found none"):
        plot_methods([], phantom)


def test_the_median_is_that_of_all_methods(phantom):
    names = [case.name for case in phantom.cases(phantom.split(1)[1])]
    rows = pd.DataFrame([{"case": names[0], "dsc": 0.9}, {"case": names[1], "dsc": 0.2},
                         {"case": names[0], "dsc": 0.0}, {"case": names[1], "dsc": 0.8}])
    case, z = median_case(phantom, 1, rows)  # means .45 and .5: the lower one is the lower median
    assert case.name == names[0] and case.label[z].any()
    assert median_case(phantom, 1, rows[:2])[0].name == names[1]
    with pytest.raises(DataError, match="phantom: fold 1: found no test volume gone"):
        median_case(phantom, 1, pd.DataFrame([{"case": "gone", "dsc": 0.1}]))


def test_pictures_of_patients_stay_out_of_the_clone(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "nbs")
    for output in ("../figures", "../results", "..", str(root / "docs")):
        folder, why = picture_folder("acdc", output, tmp_path)
        assert folder == tmp_path and "must not enter the repository" in why
        assert picture_folder("phantom", output, tmp_path)[1] == ""
    assert picture_folder("acdc", root / "runs" / "x", tmp_path) == (root / "runs" / "x", "")
    assert picture_folder("chaos", tmp_path / "mine", tmp_path) == (tmp_path / "mine", "")


# ---- the notebook


def test_the_notebook_draws_what_there_is(root, tmp_path, phantom):
    for method in ("ours", "pce"):
        make_run(tmp_path / "runs", phantom, method)
    done = papermill(root, "figures.ipynb", "-", "-p", "output", str(tmp_path / "out"), "-p", "runs",
                     str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figure1.png", "methods-phantom.png"]


def test_without_runs_it_says_how_to_make_one_and_draws_figure_1(root, tmp_path):
    done = papermill(root, "figures.ipynb", "-", "-p", "output", str(tmp_path), "-p", "runs", str(tmp_path / "none"),
                     "-p", "dataset", "acdc")
    assert done.returncode == 0, done.stderr[-3000:]
    shown = "papermill train.ipynb ../runs/acdc.ipynb -p dataset acdc -p method ours"
    assert shown in output_text(json.loads(done.stdout))
    assert [p.name for p in tmp_path.iterdir()] == ["figure1.png"]


def test_the_notebook_refuses_an_unknown_dataset(root, tmp_path):
    done = papermill(root, "figures.ipynb", "-", "-p", "dataset", "acdcc", "-p", "output", str(tmp_path))
    assert done.returncode != 0 and "did you mean 'acdc'?" in done.stderr and not any(tmp_path.iterdir())
