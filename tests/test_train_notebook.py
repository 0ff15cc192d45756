"""train.ipynb as its users start it: through the papermill command, from the folder nbs."""

import json
import subprocess
import sys

import pytest

from attenscribble.experiment.commands import METHODS

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = ["-p", "iterations", "6", "-p", "size", "48", "-p", "batch", "4", "-p", "log_every", "2"]
PHANTOM = ["-p", "data_patients", "5", "-p", "data_side", "48", "-p", "data_slices", "4"]


def papermill(root, *arguments, timeout=600):
    "Run the command in nbs/; the notebook comes back on standard output when no output path is given."
    command = [sys.executable, "-m", "papermill", *arguments]
    return subprocess.run(command, cwd=root / "nbs", capture_output=True, text=True, timeout=timeout)


def output_text(notebook: dict) -> str:
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", [])) for o in outputs)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_on_the_phantom(root, tmp_path, method):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-p", "method", method, "-p", "output",
                     str(tmp_path), *SMALL, *PHANTOM)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    text = output_text(notebook)
    assert "policy: standard" in text and "result.json" in text
    pictures = sum("image/png" in o.get("data", {}) for cell in notebook["cells"] for o in cell.get("outputs", []))
    assert pictures >= (3 if method.startswith("ours") else 2)  # curves, predictions, attention


def test_acdc_runs_without_an_output_path(root, tmp_path, data_root, monkeypatch):
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(data_root))
    done = papermill(root, "train.ipynb", "-p", "dataset", "acdc", "-p", "output", str(tmp_path), *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 test volumes of fold 1" in output_text(json.loads(done.stdout))
    (result,) = tmp_path.glob("acdc-ours-fold1-seed2022-*/result.json")
    assert json.loads(result.read_text())["test_volumes"] == 40


def test_a_misspelt_parameter_stops_the_run_before_it_starts(root, tmp_path):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-p", "asl_radios", "3", "-p", "output",
                     str(tmp_path))
    assert done.returncode != 0 and "asl_radios: unknown setting; did you mean 'asl_radius'?" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]


def test_data_that_is_not_there_says_where_it_was_looked_for(root, tmp_path):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-p", "dataset", "acdc", "-p", "root",
                     str(tmp_path / "nowhere"), "-p", "output", str(tmp_path))
    assert done.returncode != 0 and "DataError" in done.stderr and "nowhere" in done.stderr


def test_help_names_every_parameter_with_type_and_meaning(root):
    text = papermill(root, "--help-notebook", "train.ipynb").stdout
    for line in ("dataset: str", "fold: int", "lr: float", "resume: bool", "acdc, wsl4mis, chaos", "test fold"):
        assert line in text, text
