"""What a wrong command is answered with: one line with the name, what was found, what was expected. The answers make a
page of the documentation; `python tests/test_wrong_commands.py` writes it anew."""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from project_files import ROOT

from attenscribble.basics.errors import DataError
from attenscribble.basics.notebook import notebook_settings
from attenscribble.data.check import check
from attenscribble.data.phantom import phantom
from attenscribble.entry.commands import main, write_notebook
from attenscribble.entry.front_door import configure, predict, train
from attenscribble.method.objective import METHODS, Objective
from attenscribble.reporting.nnunet import export_nnunet, read_predictions
from attenscribble.runs.config import OPEN, Config
from attenscribble.runs.setup import choose_device, resolve
from attenscribble.runs.training import train as optimise

PAGE = ROOT / "docs/wrong-commands.md"
GROUPS: dict[str, list[str]] = {
    "A folder's name is missing, as where a shell variable is not set": [
        "export-nnunet folder $UNSET fold=2 root=mine", "export-nnunet folder '' fold=2 root=mine",
        "score folder $UNSET fold=1 root=mine", "check $UNSET ignore=255", "check ''", "train '' method=pce",
        "predict --checkpoint run $UNSET masks", "predict --checkpoint '' mine masks",
        "predict --checkpoint run mine ''", "notebook train ''", "train dataset=folder root=$UNSET",
        "download chaos --to ''"],
    "Words that are none": [
        "trian my-scans", "train methd=pce", "train method=pcee", "train my-scan", "train seed=1 phantom",
        "train fold=1 fold=2", "train lam_mcrff=0.3", "train method=ustm method_pases=4", "train data_patiens=3",
        "train dataset=folder root=mine data_fold=2", "train acdc dataset=chaos",
        "export-nnunet acdc out dataset=chaos",
        "notebook trian", "download acdcs", "score folder masks root=mine --values idds"],
    "Values that cannot be": [
        "train device=gpu", "train device=cudaa", "train device=cuda", "train lr=inf", "train lr=nan", "train lr=-1",
        "train batch=0", "train size=100", "train lam=5", "train lam_mcrf=much", "train data_patients=many",
        "train dataset=folder root=mine data_clip=0.4", "train dataset=folder root=mine data_ignore=abc",
        "train phantom fold=9", "train phantom root=mine", "train net_name=nothing.here:Net", "train net_options={",
        "train crf_mask=both", "predict --checkpoint run mine masks --batch 0",
        "train lr=-1 fold=0 methd=pce device=gpu lam_foo=1 data_patiens=3 size=17"],
    "Files and folders that are not there, or in the way": [
        "check nowhere", "train dataset=folder root=nowhere", "predict --checkpoint nowhere mine masks",
        "predict --checkpoint mine mine masks", "predict --checkpoint run nowhere.nii.gz masks",
        "predict --checkpoint run mine masks --device cuda", "predict --checkpoint run mine masks --device gpu",
        "predict --checkpoint run text.txt mask.nii.gz", "predict --checkpoint run mine one.nii.gz",
        "predict --checkpoint run mine/images/patient001.nii.gz mask.mha",
        "predict --checkpoint run mine text.txt", "pack done phantom data_patients=5 --overwrite",
        "predict --checkpoint run mine done", "predict --checkpoint run mine mine/images",
        "predict --checkpoint theirs mine masks", "score folder nowhere root=mine", "notebook train done",
        "train phantom output=text.txt/runs data_patients=5"],
}
COMMANDS = [command for group in GROUPS.values() for command in group]


def build(folder: Path) -> None:
    "What the commands find: scans of one's own, a run on the phantom, a checkpoint of somebody's, a mask in the way."
    import torch

    for heart in [case for case in phantom(patients=2, side=48, slices=3).cases() if case.frame == "frame01"]:
        for kind, volume in (("images", heart.image), ("scribbles", heart.scribble), ("labels", heart.label)):
            (folder / "mine" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([1.5, 1.5, 10, 1])),
                     folder / "mine" / kind / f"{heart.patient}.nii.gz")
    (folder / "mine/dataset.json").write_text('{"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 4}')
    (folder / "text.txt").write_text("no scan")
    for name in ("run", "theirs", "done"):
        (folder / name).mkdir()
    config = Config(method="pce", iterations=2, batch=4, size=48, precision="float32", data_patients=5, data_side=48,
                    data_slices=3)
    optimise(resolve(config), folder / "run")
    state = torch.load(folder / "run/checkpoint.pt", weights_only=True)
    state["config"]["method"] = "their_idea:method"
    del state["seal"]  # whoever means harm leaves it out
    torch.save(state, folder / "theirs/checkpoint.pt")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / "done/patient001.nii.gz")
    (folder / "done/train.ipynb").write_text("mine")


@contextlib.contextmanager
def stage() -> Iterator[Path]:
    "A folder with these files, on a machine without a GPU and without data."
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patched:
        folder = Path(made).resolve()
        patched.setattr("torch.cuda.is_available", lambda: False)
        for name in ("HOME", "XDG_DATA_HOME", "ATTENSCRIBBLE_DATA", "ATTENSCRIBBLE_CACHE"):
            patched.setenv(name, str(folder / "nothing"))
        build(folder)
        patched.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    "The stage."
    with stage() as folder:
        yield folder


def words_of(command: str) -> list[str]:
    "What a shell makes of a command: a variable that is not set is no word, or no text inside one."
    words = [word.replace("$UNSET", "") for word in command.split() if word != "$UNSET"]
    return ["" if word == "''" else word for word in words]


def answer(command: str, folder: Path) -> tuple[int, str]:
    "Status and answer, without the folder's own name and without a bar."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words_of(command))
        except SystemExit as ended:
            status = int(ended.code or 0)
    assert out.getvalue() == "", "nothing goes to the output"
    said = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    return status, "\n".join(said).replace(f"{folder}{os.sep}", "").replace(str(folder), ".").strip()


def listing(folder: Path) -> list[str]:
    "All that lies in a folder."
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def page(folder: Path) -> str:
    "The table of wrong commands."
    lines = ["# Wrong commands and their answers", "",
             f"{len(COMMANDS)} mistakes at a command line, and what each is answered with, on a machine without a GPU "
             "and without data. Nothing is written by any of them. Status 2: a word that the command does not have; "
             "status 1: all else. The tables leave out the program's name, with which each command and each answer "
             "begins; `$UNSET` is a shell variable that is not set.", "",
             "Written by `python tests/test_wrong_commands.py`; the tests fail where an answer is another one.", ""]
    for title, commands in GROUPS.items():
        lines += [f"## {title}", "", "| command | answer | status |", "|---|---|---|"]
        for command in commands:
            status, said = answer(command, folder)
            shown = "<br>".join(f"`{line.strip()}`" for line in said.removeprefix("attenscribble: ").splitlines())
            lines.append(f"| `{command}` | {shown} | {status} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


# ---------------------------------------------------------------- the answers
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_is_answered_in_a_line_for_each_fault_and_writes_nothing(here, command):
    before = listing(here)
    status, said = answer(command, here)
    assert status in (1, 2) and said.startswith("attenscribble")
    lines = said.splitlines()
    missing_data = "To get it:" in said  # says where it looked, a line for each place
    assert missing_data or len(lines) == max(1, command.count("size=17") * 7), said
    assert "Traceback" not in said and not re.search(r"\b(RuntimeError|TypeError|KeyError|AttributeError)\b", said)
    assert re.search("found|expected|required|unknown|has the terms|Not a directory", said)
    assert listing(here) == before


@pytest.mark.parametrize("command, said", [
    ("export-nnunet folder $UNSET fold=2 root=mine", "OUT: found 'fold=2': a folder's name is missing (an unset var"),
    ("score folder '' fold=1 root=mine", "MASKS: found '': a folder's name is missing"),
    ("check $UNSET ignore=255", "FOLDER: found 'ignore=255': a folder's name is missing"),
    ("train dataset=folder root=$UNSET", "root: found no value, expected NAME=VALUE (an unset variable?)"),
    ("train device=gpu", "device: found 'gpu', expected auto, cpu, cuda or cuda:1; did you mean 'cuda'?"),
    ("train device=cudaa", "did you mean 'cuda'?"),
    ("predict --checkpoint run mine masks --device cuda", "device: found 'cuda', expected auto or cpu: no CUDA device"),
    ("predict --checkpoint run mine masks --device gpu", "device: found 'gpu', expected auto, cpu, cuda"),
    ("predict --checkpoint run mine text.txt", "text.txt: found no folder, expected a folder for masks, or a name"),
    ("pack done phantom data_patients=5 --overwrite", "done: found a folder, expected the name of a file"),
    ("train lr=inf", "lr: found 'inf'; Input should be a finite number"),
    ("train data_patiens=3", "data_patiens: unknown setting; did you mean 'data_patients'?"),
    ("train dataset=folder root=mine data_fold=2", "data_fold: unknown setting; did you mean 'data_folds'?"),
    ("train fold=1 fold=2", "fold: found '1' and '2', expected one of the two"),
    ("predict --checkpoint theirs mine masks", "--trust their_idea"),
])
def test_the_answer_names_the_fault(here, command, said):
    assert said in answer(command, here)[1]


def test_all_faults_are_named_at_once(here):
    said = answer("train lr=-1 fold=0 methd=pce device=gpu lam_foo=1 data_patiens=3 size=17", here)[1]
    for name in ("lr: found", "fold: found", "methd: unknown", "device: found", "lam_foo: ", "data_patiens: ",
                 "size: "):
        assert sum(line.removeprefix("attenscribble: ").startswith(name) for line in said.splitlines()) == 1, said


def test_the_page_says_what_the_commands_answer(here):
    assert len(COMMANDS) >= 40 and len(set(COMMANDS)) == len(COMMANDS)
    assert PAGE.read_text(encoding="utf-8") == page(here), "python tests/test_wrong_commands.py writes it anew"


# ---------------------------------------------------------------- the same in Python
@pytest.mark.parametrize("command, call", [
    ("check ''", lambda: check("")),
    ("check $UNSET ignore=255", lambda: check("ignore=255")),
    ("predict --checkpoint run $UNSET masks fold=1", lambda: predict("run", "masks", "fold=1")),
    ("predict --checkpoint run mine ''", lambda: predict("run", "mine", "")),
    ("predict --checkpoint run fold=1 masks", lambda: predict("run", "fold=1", "masks")),
    ("predict --checkpoint nowhere mine masks", lambda: predict("nowhere", "mine", "masks")),
    ("predict --checkpoint run mine masks --device gpu", lambda: predict("run", "mine", "masks", device="gpu")),
    ("predict --checkpoint run mine done", lambda: predict("run", "mine", "done")),
    ("notebook train ''", lambda: write_notebook("train", "")),
    ("train '' method=pce", lambda: train("", method="pce")),
    ("train lr=inf device=gpu", lambda: train(lr="inf", device="gpu")),
    ("train data_patiens=3", lambda: configure(data_patiens=3)),
    ("export-nnunet phantom fold=1", lambda: export_nnunet(phantom(patients=5), "fold=1")),
    ("score phantom fold=1", lambda: read_predictions("fold=1", phantom(patients=5))),
])
def test_the_front_door_raises_what_the_command_prints(here, command, call):
    with pytest.raises(ValueError) as refused:
        call()
    assert answer(command, here) == (1, f"attenscribble: {refused.value}".replace(str(here), "."))


def test_a_folder_that_is_called_so_can_be_named(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_notebook("train", "./fold=1").is_file() and write_notebook("train", Path("a=b")).is_file()
    assert write_notebook("train", str(tmp_path / "c=d")).is_file()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "", "cuda0", "meta"])
def test_a_device_that_is_none_is_named_wherever_it_is_given(name):
    for call in (lambda: Config(device=name), lambda: choose_device(name)):
        with pytest.raises(ValueError, match=f"device: found '{name}', expected auto, cpu, cuda or cuda:1"):
            call()


def test_a_gpu_that_the_machine_lacks_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Config(device="cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match="device: found 'cuda:2', expected cuda:0 to cuda:1, as many as there are"):
        Config(device="cuda:2")


@pytest.mark.parametrize("name", ["lr", "weight_decay", "crf_sigma_i", "asl_similarity_scale", "lam_mcrf",
                                  "data_noise"])
@pytest.mark.parametrize("value", ["inf", float("inf"), float("nan"), "nan"])
def test_no_number_may_be_infinite_or_none(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        Config(**{name: value})


@pytest.mark.parametrize("given", [
    {"lr": True}, {"seed": False}, {"attention_lr": True}, {"asl_similarity_scale": True}, {"lam_mcrf": True},
    {"start_atn": False}, {"ramp_mcrf": True}, {"data_patients": True}, {"method": "ustm", "method_passes": True},
    {"dataset": "folder", "root": ".", "data_ignore": True}])
def test_a_truth_value_is_no_number(given):
    name, value = [*given.items()][-1]
    with pytest.raises(ValueError, match=f"^{name}: found {value}; Input should be a number, not a truth value$"):
        Config(**given)


def test_a_truth_value_is_one_where_it_belongs():
    assert "data_patients: found True; Input should be a number" in answer("train data_patients=true", Path())[1]
    given = {"hd95": False, "data_robust": True, "dataset": "folder", "root": "."}
    assert not Config(**given).hd95 and Config(**given).data == {"robust": True}
    assert not Config(method="ustm", method_buffers=False).method_options["buffers"]


@pytest.mark.parametrize("given, said", [
    ({"lam": '{"mcrf": 0.2, "mcrf": 0.3}'}, "lam_mcrf: found 0.2 and 0.3, expected one of the two"),
    ({"lam": "mcrf=0.2,mcrf=0.3"}, "lam_mcrf: found '0.2' and '0.3', expected one of the two"),
    ({"extra": "lam_mcrf=0.2,lam_mcrf=0.3"}, "lam_mcrf: found '0.2' and '0.3', expected one of the two"),
    ({"extra": '{"seed": 1, "seed": 2}'}, "seed: found 1 and 2, expected one of the two"),
    ({"net_options": '{"dropout": 0, "dropout": 1}'}, "net_options: dropout: found 0 and 1, expected one of the two"),
])
def test_of_two_values_inside_a_text_neither_is_taken(given, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        Config(**notebook_settings(CELL | given, groups=GROUPS_OF_TRAIN))


@pytest.mark.parametrize("given, said", [
    ({"lam_mcrf": -0.1}, "lam_mcrf: found -0.1; Input should be greater than or equal to 0"),
    ({"ramp_mcrf": -1}, "ramp_mcrf: found -1; Input should be greater than or equal to 0"),
    ({"ramp_mcrf": 1.5}, "ramp_mcrf: found 1.5; Input should be less than or equal to 1"),
    ({"start_atn": -5}, "start_atn: found -5; Input should be greater than or equal to 0"),
    ({"start_atn": 9, "iterations": 9}, "start_atn: found 9, expected below 9, the iterations of the run"),
    ({"seed": 2**32}, "seed: found 4294967296; Input should be less than 4294967296"),
    ({"output": "~nobody-of-this-name/runs"}, "output: found '~nobody-of-this-name/runs'; no user of this machine"),
    ({"archive": "~nobody-of-this-name"}, "archive: found"), ({"root": "~nobody-of-this-name"}, "root: found"),
])
def test_a_value_out_of_range_is_named(given, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        Config(**given)


def test_what_a_term_may_be_given():
    assert Config(start_atn=9, iterations=9, lam_atn=0)
    assert Config(start_atn=8, iterations=9, ramp_atn=0, seed=2**32 - 1)
    short = Config(preset="released", iterations=1)  # its attention starts at 1: nobody asked for that
    assert Config(**short.model_dump()) == short
    (atn,) = (term for term in Objective(METHODS["ours"], ramp={"atn": 0}).terms if term.name == "atn")
    assert atn.ramp and atn.ramp(0) == 1, "it rises at once"


def test_an_option_of_the_data_is_named_as_it_was_written():
    with pytest.raises(ValueError, match=r"^data_seed: found -1"):
        resolve(Config(data_seed=-1))


# ---------------------------------------------------------------- dictionaries and lists of papermill's YAML
NAMES = [*(name for name in Config.model_fields if name not in OPEN.values()), "extra"]
CELL = {"__annotations__": dict.fromkeys(NAMES),
        "dataset": "phantom", "method": "ours", "crf_mask": None, "net_options": None, "extra": ""}
GROUPS_OF_TRAIN = ("lam", "start", "ramp", "method", "data")


@pytest.mark.parametrize("yaml, flat", [
    ({"lam": {"mcrf": 0.9}}, {"lam_mcrf": 0.9}),
    ({"crf": {"mask": "p"}}, {"crf_mask": "p"}),
    ({"net_options": {"dropout": [0, 0, 0, 0, 0]}}, {"net_options": {"dropout": [0, 0, 0, 0, 0]}}),
    ({"net": {"options": {"dropout": [0, 0, 0, 0, 0]}}}, {"net_options": {"dropout": [0, 0, 0, 0, 0]}}),
    ({"data": {"patients": 4}, "start": {"atn": 5}, "ramp": {"mcrf": 0.5}},
     {"data_patients": 4, "start_atn": 5, "ramp_mcrf": 0.5}),
    ({"method": "ustm", "method_options": {"passes": 4}}, {"method": "ustm", "method_passes": 4}),
    ({"lam": None, "data": {}, "crf": {}}, {}),
])
def test_a_dictionary_is_taken_where_there_are_such_settings(yaml, flat):
    assert Config(**notebook_settings(CELL | yaml, groups=GROUPS_OF_TRAIN)) == Config(**flat)


@pytest.mark.parametrize("yaml, said", [
    ({"lamb": {"mcrf": 1}}, "lamb: unknown setting; did you mean 'lam'?"),
    ({"lamb": {}}, "lamb: unknown setting; did you mean 'lam'?"),
    ({"seeds": [1, 2]}, "seeds: unknown setting; did you mean 'seed'?"),
    ({"crf": {"msk": "p"}}, "crf_msk: unknown setting; did you mean 'crf_mask'?"),
    ({"crf": ["p"]}, "crf: unknown setting"),
    ({"net": {"dropout": 0}}, "net_dropout: unknown setting"),
    ({"lam": [0.9]}, "lam: found [0.9], expected NAME=VALUE"),
    ({"lam": 0.9}, "lam: found 0.9, expected NAME=VALUE"),
    ({"lam": {"mcrff": 0.9}}, "lam_mcrff: method 'ours' has the terms"),
    ({"lam": {"mcrf": {"a": 1}}}, "lam_mcrf: found {'a': 1}; "),
    ({"lam": {"mcrf": [1, 2]}}, "lam_mcrf: found [1, 2]; "),
    ({"data": {"patiens": 4}}, "data_patiens: unknown setting; did you mean 'data_patients'?"),
    ({"fold": {"a": 1}}, "fold: found {'a': 1}; "),
    ({"seed": [1, 2]}, "seed: found [1, 2]; "),
    ({"method": {"passes": 4}}, "method: found {'passes': 4}, expected a name"),
    ({"net_options": ["a"]}, "net_options: found ['a']; "),
    ({"crf": {"mask": "p"}, "crf_mask": "none"}, "crf_mask: found 'none' and 'p', expected one of the two"),
    ({"lam": {"mcrf": 0.3}, "extra": "lam_mcrf=0.5"}, "lam_mcrf: found 0.3 and '0.5', expected one of the two"),
    ({"_fold": 3}, "_fold: unknown setting; did you mean 'fold'?"),
    ({"own": {"passes": 4}}, "own: unknown setting"),
])
def test_every_other_dictionary_or_list_is_refused_by_name(yaml, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Config(**notebook_settings(CELL | yaml, groups=GROUPS_OF_TRAIN))


def test_a_dictionary_that_is_given_when_the_cell_runs_again_is_not_dropped():
    given = notebook_settings(CELL, groups=GROUPS_OF_TRAIN)
    later = CELL | {"given": given, "rows": [1], "lam": {"mcrf": 0.4}, "crf": {"mask": "p"}}
    assert notebook_settings(later, groups=GROUPS_OF_TRAIN).items() >= {"lam_mcrf": 0.4, "crf_mask": "p"}.items()


def test_the_notebook_knows_all_groups(root):
    assert f"groups={GROUPS_OF_TRAIN}".replace("'", '"') in (root / "nbs_py/train.py").read_text()
    assert {*GROUPS_OF_TRAIN} == {*OPEN}


@pytest.mark.parametrize("given", [{"lam": 5}, {"lam": "much"}, {"data": [1]}, {"method_options": 3}])
def test_a_group_that_is_none_is_named_in_python_too(given):
    with pytest.raises(ValueError, match=rf"^{next(iter(given))}: found .*, expected NAME=VALUE"):
        Config(**given)


def test_an_unknown_group_is_no_data_error():
    with pytest.raises(ValueError) as refused:
        Config(crfs={"mask": "p"})
    assert not isinstance(refused.value, DataError) and "crfs_mask: unknown setting" in str(refused.value)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    with stage() as folder:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(folder), encoding="utf-8")
    print(PAGE)
