"""train.ipynb as its users start it: through the papermill command, from the folder nbs."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from papermill import inspect_notebook

from attenscribble.basics.errors import one_of
from attenscribble.basics.notebook import (
    Terminal,
    announce,
    notebook_settings,
    papermill_terminal,
    short_errors,
    terminal_bar,
)
from attenscribble.method.objective import METHODS
from attenscribble.method.switches import RELEASED
from attenscribble.rivals import branches, pseudo, regularisers, teachers  # noqa: F401 - imported, they register
from attenscribble.runs.config import OPEN, Config

pytestmark = pytest.mark.usefixtures("own_cache")

STEPS = {"iterations": 6, "size": 48, "batch": 4, "log_every": 2}
EXTRA = "data_patients=5,data_side=48,data_slices=4"
SMALL = [word for name, value in STEPS.items() for word in ("-p", name, str(value))]
PHANTOM = ["-p", "extra", EXTRA]


def papermill(root, *arguments, timeout=600):
    "Run the command in nbs/; the notebook comes back on standard output when no output path is given."
    command = [sys.executable, "-m", "papermill", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # ipykernel heeds it
    return subprocess.run(command, cwd=root / "nbs", capture_output=True, text=True, timeout=timeout, env=env)


def output_text(notebook: dict) -> str:
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", [])) for o in outputs)


@pytest.mark.parametrize("method", ["ours", "ustm", "random-walker"])  # attention, a teacher, guessed labels
def test_papermill_runs_a_method_on_the_phantom(root, tmp_path, method):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-p", "method", method, "-p", "output",
                     str(tmp_path), *SMALL, *PHANTOM)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    text = output_text(notebook)
    assert "policy: standard" in text and "result.json" in text
    pictures = sum("image/png" in o.get("data", {}) for cell in notebook["cells"] for o in cell.get("outputs", []))
    assert pictures >= (3 if method.startswith("ours") else 2)  # curves, predictions, attention


@pytest.mark.parametrize("method", list(METHODS))
def test_the_notebook_s_cells_run_every_method_on_the_phantom(root, tmp_path, method, capsys, monkeypatch):
    "In this process, which has everything loaded: a kernel for each of them takes minutes."
    monkeypatch.chdir(root / "nbs")
    variables = {"__name__": "__main__"}
    for cell in json.loads(Path("train.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), variables)
        if "parameters" in cell["metadata"].get("tags", []):
            variables |= STEPS | {"method": method, "output": str(tmp_path), "extra": EXTRA}
    (result,) = tmp_path.glob(f"phantom-{method}-fold1-*/result.json")
    assert json.loads(result.read_text())["settings"]["method"] == method
    assert "policy: standard" in (said := capsys.readouterr().out) and str(result.parent) in said
    pictures = {path.name for path in result.parent.glob("*.png")}
    assert pictures == {"prediction.png"} | ({"attention.png"} if method.startswith("ours") else set())


def test_acdc_runs_without_an_output_path(root, tmp_path, data_root, monkeypatch):
    monkeypatch.setenv("ATTENSCRIBBLE_DATA", str(data_root))
    done = papermill(root, "train.ipynb", "-p", "dataset", "acdc", "-p", "output", str(tmp_path), *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 test volumes of fold 1" in output_text(json.loads(done.stdout))
    (result,) = tmp_path.glob("acdc-ours-fold1-seed2022-*/result.json")
    assert json.loads(result.read_text())["test_volumes"] == 40


def refusal(stderr: str) -> list[str]:
    "What papermill tells of a notebook's error, below its own traceback."
    return stderr.split('Exception encountered at "In [')[1].strip().splitlines()[1:]


def test_a_misspelt_parameter_is_refused_in_one_line_before_anything_large_is_loaded(root, tmp_path):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-p", "asl_radios", "3", "-p", "output",
                     str(tmp_path))
    assert done.returncode == 1
    assert refusal(done.stderr) == ["ValueError: asl_radios: unknown setting; did you mean 'asl_radius'?"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]
    cells = [c for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    (failed,) = [cell for cell in cells if any(o["output_type"] == "error" for o in cell["outputs"])]
    imports = [line for line in "".join(failed["source"]).splitlines() if "import" in line]
    assert len(failed["outputs"][0]["traceback"]) == 1 and imports == [
        "from attenscribble.basics.notebook import announce, notebook_settings, short_errors"]


def test_the_module_that_refuses_it_loads_quickly():
    code = "import sys, attenscribble.basics.notebook; print(*{'torch', 'numpy', 'pandas', 'IPython'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize(("words", "expected"), [
    (["-p", "crf_mask", "both"], "crf_mask: found 'both'; Input should be 'pq', 'p' or 'none'"),
    (["-y", "{lam: {mcrff: 0.3}}"], "lam_mcrff: method 'ours' has the terms seg, mcrf, atn"),
    (["-p", "dataset", "acdc", "-p", "root", "nowhere"], "nowhere"),
])
def test_what_the_run_refuses_is_said_without_a_traceback(root, tmp_path, words, expected):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), *words, "-p", "output", str(tmp_path))
    lines = refusal(done.stderr)
    assert done.returncode == 1 and expected in "".join(lines)
    assert re.match(r"(ValueError|DataError): ", lines[0]) and not re.search(r"Cell In|File |----", "\n".join(lines))
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]


def test_dictionaries_and_further_settings_reach_the_run(root, tmp_path):
    (tmp_path / "run.yaml").write_text("lam: {mcrf: 0.9}\ncrf: {mask: p}\ndata: {patients: 5, side: 48, slices: 4}\n")
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "-f", str(tmp_path / "run.yaml"), *SMALL,
                     "-p", "net_options", '{"dropout": [0, 0, 0, 0, 0]}', "-p", "extra", "start_atn=3",
                     "-p", "output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = tmp_path.glob("phantom-ours-*/result.json")
    settings = json.loads(result.read_text())["settings"]
    expected = {"lam_mcrf": 0.9, "crf_mask": "p", "data_side": 48, "start_atn": 3, "net_options": {"dropout": [0] * 5}}
    assert settings | expected == settings
    remarks = [line for line in done.stderr.splitlines() if line.startswith("Passed unknown parameter")]
    assert remarks == [f"Passed unknown parameter: {name}" for name in ("lam", "crf", "data")], "as train.ipynb says"


# ---- the terminal (what a person sees there: tests/test_commands_shown.py)


def test_in_a_file_there_is_the_table_and_no_bar(root, tmp_path):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "--no-progress-bar", "-p", "output",
                     str(tmp_path), *SMALL, *PHANTOM)
    assert done.stderr.count("policy: standard") == 1 and "result.json" in done.stderr
    assert "\x1b" not in done.stderr and "\r" not in done.stderr and "on phantom:" not in done.stderr


def test_what_papermill_repeats_is_there_once(root, tmp_path):
    done = papermill(root, "train.ipynb", str(tmp_path / "out.ipynb"), "--log-output", "-p", "output", str(tmp_path),
                     *SMALL, *PHANTOM)
    assert done.returncode == 0 and done.stderr.count("policy: standard") == 1


def test_a_terminal_that_is_gone_ends_no_run():
    read, write = os.pipe()
    terminal = Terminal(write)
    terminal.write("seen")
    assert os.read(read, 9) == b"seen" and not terminal.isatty() and terminal.fileno() == write
    os.close(read)
    assert terminal.write("lost") == 4
    os.close(write)


def test_outside_of_papermill_nothing_is_written_to_a_terminal(capfd):
    announce("a line")
    with terminal_bar(total=2) as bar:
        bar.update(2)
    assert papermill_terminal() is None and capfd.readouterr() == ("a line\n", "")


def test_an_error_in_the_code_keeps_its_traceback():
    for wrong in (lambda: 1 / 0, lambda: one_of("a", "b", 7), lambda: json.loads("{")):
        with pytest.raises(Exception) as caught, short_errors():
            wrong()
        assert not hasattr(caught.value, "_render_traceback_")


# ---- the parameters


def parameters(root) -> dict[str, dict]:
    "What papermill reads from the parameters cell: name → type, default, help."
    return inspect_notebook(str(root / "nbs/train.ipynb"))


def test_the_parameters_are_the_fields_of_the_configuration(root):
    assert parameters(root).keys() - {"extra"} == Config.model_fields.keys() - {*OPEN.values()}


def test_the_parameters_say_their_types_and_defaults(root):
    for name, said in parameters(root).items():
        if name == "extra":
            continue
        field = Config.model_fields[name]
        kinds = {type(field.default)} if field.default is not None else {float}
        assert said["inferred_type_name"] in {kind.__name__ for kind in kinds}, name
        assert said["help"], name
        default = ast.literal_eval(said["default"])
        if default is not None:
            assert default == ("auto" if name == "profile" else field.default), name
            continue
        (stands_for,) = re.findall(r"; None: ([^,;]+)", said["help"])
        if stands_for not in ("the profile's", "the profile's or the method's", "as lr", "the U-Net"):
            plain = stands_for if isinstance(field.default, str) else ast.literal_eval(stands_for)
            assert plain == field.default, f"{name}: {said['help']}"
        if name in RELEASED and (released := re.findall(r"released: (\S+)", said["help"])):
            assert released == [str(RELEASED[name])], name


def test_what_ipython_and_other_cells_leave_is_no_parameter():
    names = {"__annotations__": {"fold": int}, "fold": 2, "_i": "1", "_ih": ["x"], "In": ["x"], "Out": {1: 2},
             "json": json, "print": print, "here": object()}
    assert notebook_settings(names) == {"fold": 2}
    for name, value in {"folds": 2, "fold_": [1], "own": {}, "fould": {"a": 1}}.items():
        with pytest.raises(ValueError, match=f"{name}: unknown setting"):
            Config(**{name: None})  # as YAML has "name:" with nothing behind it
        with pytest.raises(ValueError, match=f"{name}: unknown setting"):
            notebook_settings(names | {name: value})


def test_a_cell_that_runs_again_takes_no_results_for_parameters():
    first = {"__annotations__": {"net_options": dict}, "net_options": None, "lam": {"mcrf": 1}}
    given = notebook_settings(first, groups=("lam",))
    again = first | {"given": given, "rows": [1], "net_options": {"dropout": 0}}
    assert notebook_settings(again, groups=("lam",)) == {"net_options": {"dropout": 0}, "lam_mcrf": 1}
    with pytest.raises(ValueError, match="seeds: unknown setting"):
        notebook_settings(again | {"seeds": 3}, groups=("lam",))


@pytest.mark.parametrize("text", [
    "lam_mcrf=0.3,data_patients=5", " lam_mcrf=0.3, data_patients=5 ", '{"lam_mcrf": "0.3", "data_patients": "5"}',
    {"lam": {"mcrf": "0.3"}, "data_patients": "5"}])
def test_further_settings_as_text_json_or_dictionary(text):
    given = notebook_settings({"extra": text}, groups=("lam", "data"))
    assert given == {"lam_mcrf": "0.3", "data_patients": "5"}


@pytest.mark.parametrize("text", ["lam_mcrf", "{lam_mcrf: 0.3}", 3])
def test_further_settings_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"extra: found .*, expected NAME=VALUE"):
        notebook_settings({"extra": text})


def test_help_names_every_parameter_with_type_and_meaning(root):
    text = papermill(root, "--help-notebook", "train.ipynb").stdout
    for line in ("dataset: str", "fold: int", "lr: float", "resume: bool", "acdc, wsl4mis, chaos", "test fold"):
        assert line in text, text
