"""Every command that a text of the project shows works as typed in a terminal, and none writes into nbs/.

Each runs in a copy of the project under a pseudo-terminal, as a person would type it, made small by what the table
below puts behind it or in place of a name. A command that no line of the table knows fails the tests.
"""

import fcntl
import hashlib
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest
from project_files import ROOT, copy_project, texts

from attenscribble.data.phantom import phantom
from attenscribble.runs.config import Config
from attenscribble.runs.inference import save_volume
from attenscribble.runs.run import run_experiment

BESIDE = ("train", "tables", "figures", "annotate", "index")  # the notebooks in nbs/ itself
PROGRAMS = ("papermill", "attenscribble", "make", "pip", "python -m", "torchrun")
STEPS = "iterations=2 log_every=1 size=48 batch=4"
PHANTOM = "data_patients=5,data_side=48,data_slices=4"
SMALL = "".join(f" -p {setting.replace('=', ' ')}" for setting in STEPS.split()) + " -p seed {seed}"
SMALL_PHANTOM = f"{SMALL} -p dataset phantom -p extra {PHANTOM}"
REAL = Path(os.environ.get("ATTENSCRIBBLE_DATA", ROOT.parent / "shared" / "data"))  # as the fixture data_root has it
SECONDS = 300  # for one command


@dataclass(frozen=True)
class Recipe:
    "How a shown command is made small and harmless, or why it is not run."

    pattern: str  # of the whole command
    behind: str = ""  # is put behind it
    instead: dict[str, str] = field(default_factory=dict)  # is put in place of words of it
    why_not: str = ""  # it is not run
    shows: tuple[str, ...] = ()  # what has to be on the screen
    needs: str = ""  # a package of others: where it is installed and does not import, the command says so in one line


TRAINED = ("policy: standard", "result.json", "loss=")
TABLE = [
    Recipe(r"source \.venv/bin/activate && mkdir -p runs && cd nbs"),
    Recipe(r"mkdir -p \.\./runs"),
    # papermill
    Recipe(r"papermill --help-notebook \w+\.ipynb", shows=("(default ",)),
    Recipe(r"papermill train\.ipynb \S+ .*-p devices 4", f"{SMALL_PHANTOM} -p devices 2", shows=TRAINED),
    Recipe(r"papermill train\.ipynb \.\./runs/t2\.ipynb .*",
           SMALL if (REAL / "chaos_t2spir").is_dir() else SMALL_PHANTOM, shows=TRAINED),
    Recipe(r"papermill train\.ipynb \S+ -p dataset (acdc|chaos)( .*)?", SMALL_PHANTOM, shows=TRAINED),
    Recipe(r"papermill nbs/train\.ipynb \S+ -p dataset folder -p root my-scans", SMALL, shows=TRAINED),
    Recipe(r"papermill (tables|figures)\.ipynb \S+( -p .*)?", shows=(".png",)),
    # attenscribble
    Recipe(r"attenscribble (methods|datasets|profiles|settings)"),
    Recipe(r"attenscribble check (my-scans|FOLDER)", instead={"FOLDER": "my-scans"}, shows=("no problems",)),
    Recipe(r"attenscribble train (dataset=folder root=(my-scans|FOLDER)|my-scans)", f" {STEPS} output=$(mktemp -d)",
           {"FOLDER": "my-scans"}, shows=TRAINED),
    Recipe(r"attenscribble train net_name=torchvision\S+ ssa_layer=\S+",
           f" {STEPS} precision=float32 {PHANTOM.replace(',', ' ')}", shows=TRAINED, needs="torchvision"),
    Recipe(r"attenscribble train dataset=acdc method=my_idea:size( .*)?",
           why_not="my_idea.py is the reader's own file; chapter 44 writes it and runs the same settings"),
    Recipe(r"attenscribble predict --checkpoint \S+ \S+ (masks|MASKS)( --\w+)?", instead={
        "runs/RUN": "runs/$RUN", "FOLDER/models/NAME.pt": "runs/$RUN/checkpoint.pt", "scans": "new-scans",
        "SCANS": "new-scans", "masks": "$(mktemp -d)/masks", "MASKS": "$(mktemp -d)/masks"}, shows=("masks in",)),
    Recipe(r"attenscribble export-nnunet acdc \$nnUNet_raw fold=1", instead={"acdc": "phantom"}),
    Recipe(r"attenscribble score acdc masks fold=1 archive=\S+( --method nnU-Net)?", instead={
        "acdc": "phantom", "masks": f"$PHANTOM_MASKS {PHANTOM.replace(',', ' ')}"}, shows=("policy: standard",)),
    Recipe(r"attenscribble pack acdc\.pack\.zip dataset=acdc", f" {PHANTOM.replace(',', ' ')}", {
        "acdc.pack.zip": "$(mktemp -d)/acdc.pack.zip", "acdc": "phantom"}, shows=("10 scans",)),
    Recipe(r"attenscribble grid workflow/phantom\.toml", shows=("pce", "ours")),
    Recipe(r"attenscribble grid workflow/phantom\.toml --run( --jobs 2)?",
           why_not="trains for minutes; test_grid.py runs a smaller one"),
    Recipe(r"snakemake -s workflow/Snakefile .*", why_not="another program; test_grid.py runs it where it is"),
    Recipe(r"attenscribble notebook train", shows=("train.ipynb", "papermill")),
    Recipe(r"attenscribble download \S+",
           why_not="gets 890 MB from elsewhere; test_download.py downloads from a server of its own"),
    Recipe(r"attenscribble (check|train|predict)", why_not="a name in a sentence, without its arguments"),
    # make
    Recipe(r"make demo", f' ARGS="{SMALL_PHANTOM}"', shows=("policy: standard", "result.json")),
    Recipe(r"make test", ' ARGS="-q tests/test_pce.py"', shows=(" passed",)),
    Recipe(r"make chapter NB=\S+", " NB=basics/02_files", shows=("1 passed",)),  # a shorter one; the named one is there
    Recipe(r"make help", shows=("make demo",)),
    Recipe(r"make setup", why_not="installs; .ci/run does so on a fresh machine"),
    Recipe(r"make browser", why_not="installs Chromium on the machine"),
    Recipe(r"make lab", why_not="serves JupyterLab until it is stopped"),
    Recipe(r"make trust|python -m tools\.trust .*", why_not="takes hours; test_trust.py runs a short form"),
    Recipe(r"make bench", why_not="measures for ten minutes; test_benchmarks.py runs its parts"),
    Recipe(r"make (check|sync)", why_not="does what test_book.py, test_project.py and test_sync.py test"),
    # other programs
    Recipe(r"pip install .*", why_not="installs; test_packaging.py does so in an environment of its own"),
    Recipe(r"python -m benchmarks\.annotator", why_not="trains for an hour; test_benchmarks.py runs its parts"),
    Recipe(r"torchrun --nnodes 2 .*", why_not="wants two machines; test_processes.py runs torchrun on one"),
    Recipe(r"nnUNetv2_\w+ .*", why_not="nnU-Net is another project's and not installed"),
]


# ---- the commands


def commands_in(text: str, spans: bool) -> list[str]:
    "The lines of a text's blocks of bash, without comments; with `spans` the commands inside sentences, too."
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", line)).strip() for line in lines]
    if spans:
        words = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        found += [word for word in words if word.startswith(tuple(f"{name} " for name in PROGRAMS)) and "…" not in word]
    return [command for command in dict.fromkeys(found) if command]


def markdown(twin: str) -> str:
    "The prose of a chapter's twin."
    cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)*)", twin, re.MULTILINE)
    return "\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)


def shown() -> dict[str, str]:
    "Every command that is shown → where."
    sources = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
    twins = {path.relative_to(ROOT / "nbs_py").with_suffix("").as_posix(): markdown(path.read_text())
             for path in sorted((ROOT / "nbs_py").rglob("*.py"))}
    found: dict[str, str] = {}
    for name, text in (sources | twins).items():
        for command in commands_in(text, spans=name in sources or name in BESIDE):
            found[command] = ", ".join(filter(None, (found.get(command), name)))
    return found


SHOWN = shown()


def recipe(command: str) -> Recipe | None:
    "The first line of the table that knows a command."
    return next((one for one in TABLE if re.fullmatch(one.pattern, command)), None)


RUN = [command for command in SHOWN if (known := recipe(command)) and not known.why_not]


def typed(command: str) -> str:
    "A command as the test types it."
    known = recipe(command)
    names = "|".join(map(re.escape, sorted(known.instead, key=len, reverse=True)))
    changed = re.sub(rf"(?<![\w/.-])({names})(?![\w/-])", lambda m: known.instead[m[1]], command) if names else command
    return changed + known.behind.format(seed=zlib.crc32(command.encode()))  # another seed is another run folder


def place(command: str) -> str:
    "The folder in which a command is typed: the clone's top folder, or nbs/ as the text beside it says."
    return "nbs" if "../" in command or re.match(r"papermill (--help-notebook )?\w+\.ipynb", command) else "."


def test_the_texts_are_read_as_they_are_shown():
    text = "```bash\n# why\nmake a  # b\npapermill a.ipynb \\\n    b.ipynb\n```\n`make c`, `make …`\n```\nmake x\n```"
    assert commands_in(text, spans=True) == ["make a", "papermill a.ipynb b.ipynb", "make c"]
    assert markdown("# %% [markdown]\n# # A\n#\n# b\n\n# %%\nc = 1  # d\n") == "# A\n\nb\n"


def test_every_command_is_known():
    assert len(SHOWN) > 30
    unknown = [f"{command}   ({where})" for command, where in SHOWN.items() if recipe(command) is None]
    assert not unknown, "no line of TABLE says how to make it small:\n" + "\n".join(unknown)


def test_every_line_of_the_table_is_shown_somewhere():
    used = {id(recipe(command)) for command in SHOWN}
    assert not [one.pattern for one in TABLE if id(one) not in used]


def test_every_papermill_command_names_the_notebook_it_writes():
    "Without that name papermill refuses, or takes a piped notebook and writes over the one that was named."
    wrong = []
    for path, text in texts().items():
        if path.suffix not in (".md", ".py", ".ipynb", "") or path.parts[0] == "tests":
            continue
        for match in re.finditer(r"papermill\s+(?!--)([\w/.{}$()-]+\.ipynb)[ \t]+(\S+)", text):
            if not match[2].endswith(".ipynb") or match[2] == match[1]:
                wrong.append(f"{path}, line {text[: match.start()].count(chr(10)) + 1}: {match[0]}")
    assert not wrong, "papermill IN.ipynb OUT.ipynb:\n" + "\n".join(wrong)


# ---- in a terminal


def in_terminal(command: str, folder: Path, env: dict[str, str], columns: int = 110) -> tuple[int, str]:
    "Exit status of a command of bash, and all that arrives at its terminal. Raises AssertionError after too long."
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
                               start_new_session=True)
    os.close(theirs)
    arrived, ends = b"", time.monotonic() + SECONDS
    try:
        while select.select([ours], [], [], max(0, ends - time.monotonic()))[0]:
            try:
                arrived += os.read(ours, 65536)
            except OSError:  # how Linux says that nobody writes there any more
                return process.wait(), arrived.decode(errors="replace").replace("\r\n", "\n")
        raise AssertionError(f"{command}: more than {SECONDS} s\n{arrived.decode(errors='replace')[-3000:]}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(ours)


def screen(text: str) -> str:
    "What a terminal shows in the end of a text with carriage returns, steps up and cleared lines."
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", re.sub(r"\x1b\[[\d;]*m", "", text)):
        if part == "\r":
            column = 0
        elif part == "\n":  # the terminal's driver makes a carriage return of it as well
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif part in ("\x1b[J", "\x1b[K"):
            lines[row] = lines[row][:column]
            lines[row + 1 :] = lines[row + 1 :] if part.endswith("K") else []
        elif not part.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return "\n".join(line.rstrip() for line in lines)


def test_the_screen_is_what_a_terminal_shows():
    assert screen("ab\rc\n\rbar\x1b[A\rd\n\r   \x1b[A\r\x1b[Jtable\nend\r") == "table\nend"
    assert screen("\x1b[31mab\x1b[0m\n12\x1b[Ax") == "abx\n12"


def environment(folder: Path) -> dict[str, str]:
    "That of the tests, with the installed commands on the path, and nothing that reaches beyond the folder."
    env = {name: value for name, value in os.environ.items()
           if name not in ("MPLBACKEND", "PYTEST_CURRENT_TEST", "VIRTUAL_ENV")}
    return env | {
        "ATTENSCRIBBLE_DATA": str(REAL), "ATTENSCRIBBLE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder), "nnUNet_raw": str(folder / "nnUNet_raw"), "PIP_NO_INDEX": "1", "PIP_DRY_RUN": "1"}


def lend_environment(project: Path) -> None:
    "A .venv for make: this environment under another name, and as new as make wants it."
    venv, real = project / ".venv", Path(sys.prefix)
    venv.mkdir()
    for name in ("bin", "lib", "share"):
        (venv / name).symlink_to(real / name)
    shutil.copy(real / "pyvenv.cfg", venv)
    for stamp in ("core-installed", "test-installed"):
        (venv / stamp).touch()


def write_scans(project: Path) -> None:
    "my-scans/ with images, scribbles and labels, and new-scans/ with images."
    for case in phantom(patients=5, side=48, slices=4).cases():
        save_volume(case.image, case, project / f"my-scans/images/{case.name}.nii.gz")
        save_volume(case.scribble, case, project / f"my-scans/scribbles/{case.name}.nii.gz")
        save_volume(case.label, case, project / f"my-scans/labels/{case.name}.nii.gz")
        save_volume(case.image, case, project / f"new-scans/{case.name}.nii.gz")
    (project / "my-scans/dataset.json").write_text(
        '{"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 4}')


def digests(folder: Path) -> dict[str, str]:
    "Every notebook of a folder, also those that should not be there, by the digest of its bytes."
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.ipynb")}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A copy of the project with scans, one run on them and one on the phantom."
    target = copy_project(tmp_path_factory.mktemp("clone"))
    if (Path(sys.prefix) / "bin/activate").is_file():
        lend_environment(target)
    write_scans(target)
    steps = dict(setting.split("=") for setting in STEPS.split()) | {"output": str(target / "runs")}
    run_experiment(Config(dataset="folder", root=str(target / "my-scans"), **steps))
    run_experiment(Config(**steps, **dict(setting.split("=") for setting in PHANTOM.split(","))))
    return target


@pytest.fixture(scope="module")
def before(project) -> dict[str, str]:
    "The copy's notebooks, as they are before any command has run."
    return digests(project / "nbs")


@dataclass
class Ran:
    "A command that was run."

    status: int
    text: str


@pytest.fixture(scope="module")
def ran(request, project, before, tmp_path_factory) -> dict[str, Ran]:
    "Each command that a test was selected for, run, as many at a time as there are cores."
    env = environment(tmp_path_factory.mktemp("around"))
    runs = {folder.name.split("-")[0]: folder for folder in (project / "runs").iterdir()}
    env |= {"RUN": runs.pop("my").name, "PHANTOM_MASKS": str(runs["phantom"] / "masks")}
    chosen = [item.callspec.params["command"] for item in request.session.items
              if getattr(item, "originalname", "") == test_a_shown_command_works.__name__]

    def run(words: str, folder: str) -> Ran:
        for _ in range(2):
            status, text = in_terminal(words, project / folder, env)
            if "Address already in use" not in text:  # two kernels that started at once drew the same port
                break
        return Ran(status, text)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = {as_typed: pool.submit(run, *as_typed) for as_typed in {(typed(c), place(c)): 0 for c in chosen}}
        return {command: started[typed(command), place(command)].result() for command in chosen}


@lru_cache
def import_fails(package: str) -> str:
    "Why a package cannot be imported, in the words of its own error; nothing where it can."
    done = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


@pytest.mark.parametrize("command", RUN)
def test_a_shown_command_works(ran, project, command):
    if "activate" in command and not (project / ".venv").is_dir():
        pytest.skip("the tests run outside of a virtual environment")
    done, known = ran[command], recipe(command)
    if known.needs and (why := import_fails(known.needs)):  # such as a torchvision that was built for another torch
        assert done.status == 1 and done.text.strip().count("\n") == 0, done.text
        assert done.text.startswith("attenscribble: net_name: found") and why in done.text, (done.text, why)
        return
    assert done.status == 0, f"{typed(command)}\n{done.text[-4000:]}"
    for words in known.shows:
        assert words in done.text, f"{words!r} is not on the screen of {typed(command)}\n{done.text[-4000:]}"
    assert "Traceback" not in done.text and "Passed unknown parameter" not in done.text, done.text[-4000:]
    if "chapter" in command:
        assert (project / f"nbs/{command.split('NB=')[1]}.ipynb").is_file(), "the chapter that is named is there"
    if command.startswith("papermill train") or command.startswith("papermill nbs/train"):
        last = screen(done.text)
        assert "it/s, loss=" in done.text or "s/it, loss=" in done.text, "a bar with the loss while it trains"
        assert " on phantom:" not in last and " on chaos:" not in last, f"the bar is gone in the end\n{last}"
        assert last.count("policy: standard") == 1 and "Executing: 100%" in last, last


def test_no_notebook_of_the_project_was_written(ran, project, before):
    assert "train.ipynb" in before and digests(project / "nbs") == before


@pytest.mark.parametrize("name", ["train", "tables", "figures"])
def test_with_a_pipe_for_standard_input_it_is_the_same_notebook(project, before, tmp_path, name):
    "As under `docker exec -i` or in a job: papermill then looks for a notebook in the pipe if only one is named."
    command = next(command for command in SHOWN if command.startswith(f"papermill {name}.ipynb"))
    done = subprocess.run([*shlex.split(command), "--prepare-only"], cwd=project / "nbs", env=environment(tmp_path),
                          stdin=subprocess.PIPE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (project / "nbs" / shlex.split(command)[2]).is_file() and digests(project / "nbs") == before
