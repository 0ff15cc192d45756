"""The first minutes: import, help, the command line and its answers, the notebooks; and a method of one's own."""

import ast
import doctest
import fcntl
import io
import json
import os
import pty
import pydoc
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import attenscribble
from attenscribble.basics.errors import DataError
from attenscribble.basics.files import project_root
from attenscribble.data.phantom import phantom
from attenscribble.entry import commands
from attenscribble.entry.commands import NOTEBOOKS, list_settings, main, write_notebook
from attenscribble.entry.front_door import configure, predict, train
from attenscribble.runs.config import OPEN, Config
from attenscribble.runs.inference import save_volume
from attenscribble.runs.training import read_checkpoint

pytestmark = pytest.mark.usefixtures("own_cache")

PROGRAM = "import sys; from attenscribble.entry.commands import main; sys.exit(main())"
TINY = {"iterations": 4, "batch": 4, "size": 48, "log_every": 1, "precision": "float32", "lr": 0.001,
        "data_patients": 5, "data_side": 48, "data_slices": 4}
WORDS = [f"{name}={value}" for name, value in TINY.items()]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    "The current folder, and empty."
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> list[str]:
    "The command, as an installation starts it: a script in a folder of its own."
    script = tmp_path_factory.mktemp("bin") / "attenscribble"
    script.write_text(PROGRAM)
    return [sys.executable, str(script)]


def hearts(root: Path, count: int = 4) -> Path:
    "A folder of scans with scribbles and names."
    for heart in list(phantom(patients=count, side=48, slices=4).cases())[::2]:
        for kind, volume in (("images", heart.image), ("scribbles", heart.scribble)):
            save_volume(volume, heart, root / kind / f"{heart.patient}.nii.gz")
    named = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 4}
    (root / "dataset.json").write_text(json.dumps(named))
    return root


def least_cpu_s(*command: str) -> float:
    "CPU seconds of a command: the least of five."
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


# ---------------------------------------------------------------- import attenscribble
def test_importing_the_package_loads_nothing_else():
    code = "import sys; before = {*sys.modules}; import attenscribble; print(*sorted({*sys.modules} - before))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["attenscribble"]
    bare, ours = (least_cpu_s(sys.executable, "-c", code) for code in ("pass", "import attenscribble"))
    assert ours < 1.5 * bare


def test_every_name_is_loaded_on_first_use():
    tree = ast.parse(Path(attenscribble.__file__).read_text())
    branches = {ast.unparse(node.test): node.body for node in tree.body if isinstance(node, ast.If)}
    typed = branches["TYPE_CHECKING"]
    shown = {alias.name: node.module for node in typed for alias in node.names}
    assert shown == attenscribble._HOMES and sorted(shown) == sorted(attenscribble.__all__)
    assert {*attenscribble.__all__, "__version__"} <= {*dir(attenscribble)}
    for name, home in shown.items():
        assert getattr(attenscribble, name) is getattr(sys.modules[f"attenscribble.{home}"], name)
        assert vars(attenscribble)[name] is getattr(attenscribble, name), "the second time, nothing is looked up"


def test_an_unknown_name_is_answered_with_the_nearest():
    usual = "module 'attenscribble' has no attribute"
    for name, message in (("trian", f"{usual} 'trian'; did you mean 'train'?"), ("xyzzy", f"{usual} 'xyzzy'")):
        with pytest.raises(AttributeError) as raised:
            getattr(attenscribble, name)
        assert str(raised.value) == message
    code = "import attenscribble; attenscribble.trian"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.lower().count("did you mean") == 1, "Python's own suggestion does not come on top"


def test_the_examples_of_the_page_are_true(here):
    hearts(here / "my-scans")
    heart = phantom(patients=5, side=48, slices=4).read("patient005")[0]
    for path in (here / "new-scans" / "heart.nii.gz", here / "scan.nii.gz"):
        save_volume(heart.image, heart, path)
    page, printed = doctest.DocTestParser().get_doctest(attenscribble.__doc__, {}, "page", None, 0), io.StringIO()
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page, out=printed.write)
    assert done.failed == 0 and done.attempted > 20, printed.getvalue()
    assert nib.load("masks/heart.nii.gz").shape == nib.load("new-scans/heart.nii.gz").shape
    nodes = [node for example in page.examples for node in ast.walk(ast.parse(example.source))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert {*attenscribble.__all__} <= used, "every name has its example"


def test_help_begins_with_the_page():
    text = pydoc.render_doc(attenscribble, renderer=pydoc.plaintext)
    assert "attenscribble - Segment medical images from a few scribbles." in text
    assert text.index('train("my-scans", iterations=12)') < text.index("PACKAGE CONTENTS")


# ---------------------------------------------------------------- train, predict
@pytest.mark.parametrize("source, expected", [
    (None, {"dataset": "phantom"}),
    ("acdc", {"dataset": "acdc"}),
    ("my-scans", {"dataset": "folder", "root": "my-scans"}),
    (Path("my-scans"), {"dataset": "folder", "root": "my-scans"}),
    ("chaos", {"dataset": "chaos"}),  # a folder of this name without images/: the dataset may lie in it
    ("./chaos", {"dataset": "folder", "root": "chaos"}),
    (Path("chaos"), {"dataset": "folder", "root": "chaos"}),
    (Config(dataset="acdc", fold=3), {"dataset": "acdc", "fold": 3}),
])
def test_what_a_source_stands_for(here, source, expected):
    for folder in ("my-scans/images", "chaos/MR"):
        (here / folder).mkdir(parents=True)
    assert configure(source) == Config(**expected)


@pytest.mark.parametrize("source, settings, message", [
    ("my-scan", {}, "source: found 'my-scan', expected a folder or one of phantom, acdc, wsl4mis, chaos; did you mean "
                    "'my-scans'\\?"),
    ("data/hart", {}, "found 'data/hart', expected a folder or one of .*; did you mean 'data/heart'\\?"),
    ("acdd", {}, "did you mean 'acdc'\\?$"),
    ("xyzzy", {}, "expected a folder or one of phantom, acdc, wsl4mis, chaos$"),
    (Path("acdc"), {}, "source: found 'acdc', expected a folder"),
    ("a.nii.gz", {}, "source: found 'a.nii.gz', expected a folder"),
    ("phantom", {}, "source: found 'phantom', the name of a dataset and of a folder with images/, expected './phantom' "
                    "for the folder, dataset='phantom' for the dataset"),
    ("acdc", {"dataset": "chaos"}, "dataset: found 'chaos' beside the source 'acdc', expected one of the two"),
    ("my-scans", {"root": "data"}, "root: found 'data' beside the source 'my-scans', expected one of the two"),
    (Config(), {"lr": 1}, "lr: found 1 beside a Config, expected one of the two"),
    ("my-scans", {"methd": "pce"}, "^methd: unknown setting; did you mean 'method'\\?$"),
    ("my-scans", {"lr": -1, "fold": 0}, "^lr: found -1; .*\nfold: found 0; "),
])
def test_a_wrong_call_is_refused_before_anything_is_read(here, monkeypatch, source, settings, message):
    monkeypatch.setattr("attenscribble.entry.front_door.run_experiment", lambda *_: pytest.fail("a run was begun"))
    for folder in ("my-scans/images", "data/heart", "phantom/images"):
        (here / folder).mkdir(parents=True)
    (here / "my-scans/images/a.nii.gz").write_bytes(b"no image")
    (here / "a.nii.gz").touch()
    with pytest.raises(ValueError, match=message) as refused:
        train(source, **settings)
    assert len(str(refused.value).splitlines()) == max(1, len(settings))


def test_a_run_shows_a_bar_and_gives_its_outcome(here, capsys):
    seen = []
    outcome = train("phantom", method="pce", watch=lambda state: seen.append(state.step), **TINY)
    assert re.search(r"pce on phantom: 100%.* 4/4 \[\d\d:\d\d<\d\d:\d\d, .*loss=\d", capsys.readouterr().err)
    assert seen == [1, 2, 3, 4] and outcome.folder.resolve().parent == here / "runs"
    assert outcome.report().startswith("phantom-pce-fold1") and outcome.config.lr == TINY["lr"]
    case = outcome.dataset.read("patient001")[0]
    save_volume(case.image, case, here / "scan.nii.gz")
    with pytest.raises(ValueError, match=r"option: found 'overwite', expected one of .*; did you mean 'overwrite'\?"):
        predict(outcome.folder, "scan.nii.gz", "masks", overwite=True)
    assert predict(outcome.folder, "scan.nii.gz", "masks", uncertainty=True) == [Path("masks/scan.nii.gz")]
    stored = np.asarray(nib.load("masks/scan.nii.gz").dataobj).T
    np.testing.assert_array_equal(stored, outcome.masks[case.name])
    assert Path("masks/scan_uncertainty.nii.gz").is_file()


def test_a_script_under_torchrun_is_told_what_to_do(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="found a script under torchrun, expected one that runs alone: devices=N"):
        train("phantom")


def test_half_of_torchruns_environment_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    said = "environment: found RANK without WORLD_SIZE, MASTER_ADDR, MASTER_PORT, expected all of them, as torchrun"
    with pytest.raises(ValueError, match=said):
        train("phantom", **TINY)


def test_a_layer_is_named_by_the_setting(here):
    with pytest.raises(ValueError, match=r"^ssa_layer: found 'nix', expected a layer of UNet2d"):
        train("phantom", ssa_layer="nix", **TINY)
    assert not [*here.iterdir()]


def test_a_tilde_is_the_home_folder_in_python_too(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    asked = []
    monkeypatch.setattr("attenscribble.entry.front_door.predict_files", lambda *places: asked.append(places) or [])
    predict("~/run", Path("~/scans"), "./~masks")
    assert asked == [(here / "home/run", here / "home/scans", "./~masks")]
    with pytest.raises(ValueError, match="no user of this machine is called 'nobody-of-this-name'"):
        predict("run", "scans", "~nobody-of-this-name/masks")
    result = {"run": "a-run", "left_out": []}
    monkeypatch.setattr("attenscribble.reporting.nnunet.score_predictions", lambda *_: result)
    monkeypatch.setattr("attenscribble.reporting.nnunet.result_report", lambda _: "")
    assert main(["score", "phantom", "masks", "archive=~/results"]) == 0
    assert (here / "home/results/a-run.json").is_file() and [path.name for path in here.iterdir()] == ["home"]


# ---------------------------------------------------------------- the command line: quick, and one line for a mistake
def test_an_output_that_is_closed_is_no_fault(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    for words in ("profiles", "settings"):
        assert main([words]) == 0
    assert capsys.readouterr().err == ""


def test_a_notebook_is_not_written_into_a_file(here, capsys):
    (here / "file").touch()
    assert main(["notebook", "tables", "file"]) == 1
    assert capsys.readouterr().err == "attenscribble: file: found no folder, expected one, or a name that is free\n"


@pytest.mark.parametrize("name", ["ours", "Ours", " PCE", "GCRF"])
def test_masks_from_elsewhere_do_not_take_the_name_of_a_method(here, capsys, name):
    assert main(["score", "phantom", "masks", "--method", name]) == 1
    assert f"method: found {name!r}, expected a name that no method" in capsys.readouterr().err


def test_help_does_not_wait_for_pytorch(program):
    assert least_cpu_s(*program, "--help") < 0.5
    assert least_cpu_s(*program, "train", "--help") < 0.5
    heavy = "import torch, numpy, pandas, pydantic, scipy, nibabel"
    names = [alias.name for node in ast.parse(heavy).body for alias in node.names]
    for words in (["--help"], ["--version"], ["predict", "--help"], ["notebook"], ["check", "nowhere"], ["chek"]):
        code = ("import sys\nfrom attenscribble.entry.commands import main\ntry: main(sys.argv[1:])\n"
                f"except SystemExit: pass\nprint('loaded:', *{{*sys.modules}} & {{*{names}}})")
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].split() == ["loaded:"], words


def test_every_command_has_its_help(capsys):
    for words in ([], *([name] for name in commands._COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and " ".join(["usage: attenscribble", *words]) in text
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"attenscribble {attenscribble.__version__}\n"


def test_the_settings_are_those_of_a_run():
    lines = list_settings().splitlines()
    named = [line.split()[0] for line in lines]
    assert named[0] == "dataset" and len(named) == len(Config.model_fields) == len({*named})
    assert {*named} - {*Config.model_fields} == {f"{start}_NAME" for start in OPEN}
    assert lines[named.index("fold")].split(maxsplit=2) == ["fold", "1", "test fold, counted from 1"]


@pytest.mark.parametrize("words, status, text", [
    ("trian", 2, "COMMAND: found 'trian', expected one of train, .*; did you mean 'train'\\?"),
    ("predict in out --chekpoint c", 2, "required: --checkpoint"),
    ("predict in out --checkpoint c --batch 0", 2, "found '0', expected a whole number, at least 1"),
    ("notebook trian", 2, "NAME: found 'trian', expected one of train, annotate, .*; did you mean 'train'"),
    ("download chaoss", 2, "NAME: found 'chaoss', .* did you mean 'chaos'"),
    ("--versoin", 2, "required: COMMAND"),
    ("train methd=pce", 1, "methd: unknown setting; did you mean 'method'\\?$"),
    ("train method=pcee", 1, "method: found 'pcee', .* did you mean 'pce'\\?$"),
    ("train method=no_such_file:size", 1, "method: found 'no_such_file:size' .*, expected package.module:Name"),
    ("train seed=1 phantom", 1, "found 'phantom', expected NAME=VALUE"),
    ("train my-scan", 1, "source: found 'my-scan', expected a folder"),
    ("train data_patiens=3", 1, "patiens"),
    ("train phantom fold=9", 1, "fold: found 9"),
    ("train output=file/runs data_patients=5", 1, "file.*: found the file file in its path, expected a folder"),
    ("check nowhere", 1, "nowhere: found no such folder, expected one with images/ and scribbles/$"),
    ("check . axis", 1, "found 'axis', expected NAME=VALUE"),
    ("predict --checkpoint nowhere in out", 1, "nowhere: found no checkpoint"),
    ("export-nnunet acdd out", 1, "dataset: found 'acdd', .*did you mean 'acdc'"),
    ("score phantom nowhere", 1, "nowhere: "),
    ("notebook train file/deep", 1, "file.*: Not a directory$"),
])
def test_a_wrong_word_is_answered_in_one_line(here, capsys, words, status, text):
    (here / "file").touch()
    try:
        ended = main(words.split())
    except SystemExit as leaving:
        ended = leaving.code
    said = capsys.readouterr()
    assert ended == status and said.out == "" and said.err.count("\n") == 1
    usage = rf"attenscribble[\w -]*: .*{text}.* \(see attenscribble.* --help\)$"
    assert re.match(usage if status == 2 else f"attenscribble: .*{text}", said.err)
    assert [path.name for path in here.iterdir()] == ["file"]


def test_no_word_at_all_is_answered_with_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("usage: attenscribble")


@pytest.mark.parametrize("error, text", [
    (FloatingPointError("iteration 7: the loss is nan"), "iteration 7: the loss is nan"),
    (RuntimeError("CUDA error: out of memory\nmore words\n"), "CUDA error: out of memory more words"),
    (RuntimeError("one of 2 processes failed:\nTraceback (most recent call last):\n  File 'a'\nKeyError: 'x'"),
     "one of 2 processes failed: KeyError: 'x'"),
    (OSError(28, "No space left on device", "runs/a/checkpoint.pt"), "runs/a/checkpoint.pt: No space left on device"),
    (OSError("the line is cut"), "the line is cut"),
    (TypeError("term 'size': found a Tensor"), "term 'size': found a Tensor"),
    (RuntimeError(), "RuntimeError"),
], ids=str)
def test_a_fault_of_the_run_is_one_line(monkeypatch, capsys, error, text):
    def fail(config):
        raise error

    monkeypatch.setattr("attenscribble.runs.run.run_experiment", fail)
    assert main(["train"]) == 1
    assert capsys.readouterr() == ("", f"attenscribble: {text}\n")
    with pytest.raises(type(error)) as raised:
        main(["--traceback", "train"])
    assert raised.value is error


def test_a_fault_of_the_program_is_shown_in_full(monkeypatch):
    monkeypatch.setattr("attenscribble.runs.run.run_experiment", lambda config: {}["a"])
    with pytest.raises(KeyError):
        main(["train"])


def test_a_reader_that_has_had_enough(program):
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([*program, "notebook"], stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert done.returncode == 1 and done.stderr == ""


# ---------------------------------------------------------------- a run in a terminal
def in_a_terminal(command: list[str], cwd: Path) -> tuple[int, str]:
    "Exit status of a command, and what it shows in a pseudo-terminal of 40 lines and 120 columns."
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    done = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # so Linux ends a terminal that nobody writes to any more
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return done.wait(), shown.decode()


def test_a_run_in_a_terminal_has_a_bar_then_the_table_then_its_folder(program, tmp_path):
    status, shown = in_a_terminal([*program, "train", "phantom", "method=pce", *WORDS], tmp_path)
    assert status == 0, shown
    bar = re.search(r"4/4 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(it/s|s/it), loss=[\d.]+", shown)
    assert bar and bar.start() < shown.index("policy: ")
    last = shown.split()[-3:]
    assert last[:2] == ["run", "folder"] and (tmp_path / last[2] / "checkpoint.pt").is_file()


def test_what_is_stopped_says_that_it_goes_on(program, tmp_path):
    words = [word for word in WORDS if not word.startswith("iterations")]
    run = subprocess.Popen([*program, "train", "method=pce", *words, "iterations=100000", "eval_every=1"], cwd=tmp_path,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # heard under nohup too
    ends = time.monotonic() + 120
    while not (found := list(tmp_path.glob("runs/*/checkpoint.pt"))) and time.monotonic() < ends and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and out == "" and "Traceback" not in errors
    assert errors.splitlines()[-1] == "attenscribble: stopped; the same command goes on from the last checkpoint"
    assert read_checkpoint(found[0])["step"] >= 1


def test_each_command_says_what_a_stop_means(monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("attenscribble.data.download.download", stop)
    monkeypatch.setattr("attenscribble.entry.front_door.predict", stop)
    assert main(["download", "chaos"]) == 130 and main(["predict", "--checkpoint", "c", "in", "out"]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said == ["attenscribble: stopped; the same command goes on from there",
                    "attenscribble: stopped; the same command goes on with the scans that have no mask"]


# ---------------------------------------------------------------- a method of one's own, in the current folder
IDEA = '''
from attenscribble.basics.distributed import BatchMean, mean_of
from attenscribble.method.objective import SEGMENTATION, LossContext, Method, Term


def excess(context: LossContext):
    "How much of each image is filled beyond a fifth, squared: [N]."
    return (0.8 - context.probs[:, 0].mean((1, 2))).clamp(min=0).square()


def size_term(context: LossContext) -> BatchMean:
    return mean_of(excess(context))


def plain_term(context: LossContext):
    return excess(context).mean()


size = Method("size", "pCE + size", "an idea", (SEGMENTATION, Term("size", size_term)))
plain = Method("plain", "pCE + size", "an idea", (SEGMENTATION, Term("size", plain_term)))
'''


def started(program: list[str], folder: Path, *words: str) -> subprocess.CompletedProcess:
    "The command in a folder."
    return subprocess.run([*program, *words], cwd=folder, capture_output=True, text=True, timeout=300)


def test_an_idea_in_the_current_folder_trains_in_one_process_and_in_two_and_predicts(program, tmp_path):
    (tmp_path / "my_idea.py").write_text(IDEA)
    logs = {}
    for devices in (1, 2):
        done = started(program, tmp_path, "train", "phantom", "method=my_idea:size", *WORDS, f"devices={devices}",
                       f"output=runs{devices}")
        assert done.returncode == 0, done.stderr
        assert "\r" not in done.stdout and "%|" not in done.stdout, "the bar is none of the result"
        assert done.stdout.startswith("phantom-my_idea_size-fold1-") and "policy: standard" in done.stdout
        folder = tmp_path / done.stdout.splitlines()[-1].removeprefix("run folder").strip()
        logs[devices] = pd.read_csv(folder / "log.csv").drop(columns="seconds")
    assert list(logs[1]) == ["step", "lr", "loss", "seg", "size"] and (logs[1]["size"] > 0).all()
    pd.testing.assert_frame_equal(logs[1], logs[2], rtol=2e-4, atol=1e-6)
    heart = phantom(patients=6, side=48, slices=4).read("patient006")[0]
    save_volume(heart.image, heart, tmp_path / "new" / "heart.nii.gz")
    predict = ["predict", "--checkpoint", str(folder), "new", "masks"]
    done = started(program, tmp_path, *predict)
    assert done.returncode == 1 and "which runs " in done.stderr and "--trust my_idea" in done.stderr
    done = started(program, tmp_path, *predict, "--trust", "my_idea")
    assert done.returncode == 0 and done.stdout == "masks/heart.nii.gz\n", done.stderr
    assert nib.load(tmp_path / "masks" / "heart.nii.gz").shape == heart.shape[::-1]


@pytest.mark.parametrize("devices", [1, 2])
def test_an_idea_that_is_wrong_in_two_processes_is_refused_by_name(program, tmp_path, devices):
    (tmp_path / "my_idea.py").write_text(IDEA)
    done = started(program, tmp_path, "train", "phantom", "method=my_idea:plain", *WORDS, f"devices={devices}")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("attenscribble: ") and "term 'size': found a Tensor, expected a BatchMean" in last


# ---------------------------------------------------------------- notebooks
def test_the_notebooks_are_listed(capsys):
    assert main(["notebook"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(NOTEBOOKS) and "attenscribble notebook NAME" in lines[-1]


def test_a_notebook_is_written_and_never_over_another(root, here, capsys):
    assert main(["notebook", "train.ipynb", "deep/er"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "deep/er/train.ipynb" and said[1] == "Next: jupyter lab deep/er/train.ipynb"
    assert said[2] == "  or: papermill deep/er/train.ipynb deep/er/train-done.ipynb -p dataset acdc"
    (here / "train.ipynb").write_text("mine")
    assert main(["notebook", "train"]) == 1
    words = "train.ipynb: found a file that is there already, expected another folder, or --overwrite"
    assert words in capsys.readouterr().err
    assert (here / "train.ipynb").read_text() == "mine"
    assert main(["notebook", "train", "--overwrite"]) == 0
    assert (here / "train.ipynb").read_text() == (here / "deep/er/train.ipynb").read_text()
    with pytest.raises(DataError, match=r"train.ipynb: found the original, expected another folder"):
        write_notebook("train", root / "nbs", overwrite=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_written_notebook_writes_beside_itself_and_not_above(root, here, name):
    copied, original = (json.loads(path.read_text(encoding="utf-8"))["cells"]
                        for path in (write_notebook(name), root / "nbs" / f"{name}.ipynb"))
    assert len(copied) == len(original)
    code = "".join("".join(cell["source"]) for cell in copied if cell["cell_type"] == "code")
    assert "../" not in code and "folder `nbs`" not in json.dumps(copied, ensure_ascii=False)
    assert project_root(here) is None


def papermill(folder: Path, *words: str) -> str:
    "What a notebook shows when it is run in a folder."
    done = subprocess.run([sys.executable, "-m", "papermill", *words], cwd=folder, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((folder / words[1]).read_text(encoding="utf-8"))["cells"]
    return "".join("".join(output.get("text", [])) for cell in cells for output in cell.get("outputs", []))


def test_written_notebooks_run_in_any_folder(tmp_path):
    for name in NOTEBOOKS:
        write_notebook(name, tmp_path / "notebooks")
    settings = [word for name, value in {**TINY, "archive": "results", "method": "pce"}.items()
                for word in ("-p", name, str(value))]
    assert "policy: standard" in papermill(tmp_path, "notebooks/train.ipynb", "train.ipynb", *settings)
    assert len(list(tmp_path.glob("runs/phantom-pce-*/result.json"))) == len(list(tmp_path.glob("results/*.json"))) == 1
    assert "1 results" in papermill(tmp_path, "notebooks/tables.ipynb", "tables.ipynb", "-p", "dataset", "phantom")
    papermill(tmp_path, "notebooks/figures.ipynb", "figures.ipynb")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"figure1.png", "methods-phantom.png", "table1-phantom.md"} <= written
    papermill(tmp_path, "notebooks/annotate.ipynb", "annotate.ipynb")
    assert not [path for path in tmp_path.parent.iterdir() if path.name in ("runs", "results", "figures")]
