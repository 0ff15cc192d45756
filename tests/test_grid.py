"""Grids of runs: what a file asks for, what is said of a wrong one; killing loses nothing and runs nothing twice."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from project_files import ROOT

from attenscribble.basics.errors import DataError
from attenscribble.basics.files import write_json
from attenscribble.data.scans import content_id
from attenscribble.entry.commands import main
from attenscribble.reporting.tables import read_results, results_table
from attenscribble.runs import grid as grids
from attenscribble.runs.config import Config
from attenscribble.runs.grid import (
    EXECUTED,
    LOCK,
    LOG,
    Job,
    dry_run,
    duration,
    estimate,
    job_named,
    plan,
    read_archive,
    read_grid,
    run_grid,
    run_job,
    state_of,
    threads_each,
)
from attenscribble.runs.run import machine_kind
from attenscribble.runs.setup import resolve

TINY = """
archive = "results"
iterations = 5
size = 32
batch = 2
eval_every = 1
data = {patients = 5, side = 32, slices = 2}
"""
COMMAND = [sys.executable, "-c", "import sys; from attenscribble.entry.commands import main; sys.exit(main())", "grid"]
SECONDS = 300  # for whatever is waited for
WAITS = "another process is at work on it, waiting"


def written(folder: Path, text: str) -> Path:
    "A grid's file."
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- what a file asks for


def test_lists_are_multiplied_and_values_are_shared(tmp_path):
    jobs = read_grid(written(tmp_path, TINY + 'method = ["pce", "ours"]\nfold = [1, 2]\nseed = [3, 4]')).jobs
    found = [(job.config.method, job.config.fold, job.config.seed, job.config.iterations) for job in jobs]
    assert found == [(m, f, s, 5) for m in ("pce", "ours") for f in (1, 2) for s in (3, 4)]


def test_rows_stand_over_what_all_share_and_have_lists_of_their_own(tmp_path):
    text = TINY + """seed = [1, 2]
    [rows.plain]
    method = ["pce", "ours"]
    [rows.residual]
    method = "ours"
    ssa_block = "residual"
    seed = 1
    """
    grid = read_grid(written(tmp_path, text))
    assert [(job.row, job.config.method, job.config.ssa_block, job.config.seed) for job in grid.jobs] == [
        ("plain", "pce", "paper", 1), ("plain", "ours", "paper", 1), ("plain", "pce", "paper", 2),
        ("plain", "ours", "paper", 2), ("residual", "ours", "residual", 1)]
    frame = plan(grid)
    assert list(frame.columns) == ["run", "row", "ssa_block", "state", "seconds", "rests on"]
    assert list(frame.ssa_block) == [""] * 4 + ["residual"]


def test_groups_may_be_tables_and_their_entries_lists(tmp_path):
    tables = "lam.mcrf = [0.1, 0.3]\n[crf]\nmask = 'p'\n[net_options]\ndropout = [0, 0, 0, 0, 0]"
    grid = read_grid(written(tmp_path, TINY + tables))
    assert [job.config.lam for job in grid.jobs] == [{"mcrf": 0.1}, {"mcrf": 0.3}]
    assert {job.config.crf_mask for job in grid.jobs} == {"p"}
    assert grid.jobs[0].config.net_options == {"dropout": [0] * 5}


def test_excluded_jobs_and_those_with_equal_settings_are_left_out_and_counted(tmp_path):
    text = TINY + 'method = ["pce", "ours"]\nseed = [1, 2, 3]\nlr = [0.03, 3e-2]\n'
    grid = read_grid(written(tmp_path, text + '[[exclude]]\nmethod = "ours"\nseed = [2, 3]'))
    found = [(job.config.method, job.config.seed) for job in grid.jobs]
    assert found == [("pce", 1), ("pce", 2), ("pce", 3), ("ours", 1)]
    assert (grid.twice, grid.excluded) == (4, 4)
    assert dry_run(grid)[1].endswith("4 with the settings of another left out, 4 excluded")


def test_what_only_says_where_to_compute_makes_no_second_run(tmp_path):
    grid = read_grid(written(tmp_path, TINY + "log_every = [1, 2, 3]"))
    assert len(grid.jobs) == 1 and grid.twice == 2 and grid.jobs[0].config.log_every == 1, "the first of equals"


def test_folders_are_seen_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep", TINY.replace('"results"', '"../kept"') + 'output = "~/out"')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (job,) = read_grid("deep/grid.toml").jobs
    assert job.target.parent == tmp_path / "kept" and job.folder.parent == tmp_path / "home/out"
    (job,) = read_grid(written(tmp_path, TINY)).jobs
    assert job.folder.parent == tmp_path / "runs", "beside the file, where it is in no clone"
    (job, *_) = read_grid(ROOT / "workflow/phantom.toml").jobs
    assert job.folder.parent == ROOT / "runs" and job.target.parent == ROOT / "runs/results"


def test_a_run_is_named_by_what_the_loader_chose(tmp_path, data_root):
    text = f'archive = "r"\ndataset = "chaos"\nprofile = "mini"\nroot = "{data_root}"\ndata_sequence = "t2spir"'
    (job,) = read_grid(written(tmp_path, text)).jobs
    assert job.config.data["scribbles"] == "paper", "as `resolve` fills it in, before the run is named"
    assert job.config.run_id != Config(dataset="chaos", profile="mini", data_sequence="t2spir").run_id


# ---- what is wrong with a file


@pytest.mark.parametrize(("text", "expected"), [
    ("method = pce", "grid.toml: found no TOML (Invalid value (at line 1, column 10)), expected lines such as"),
    (TINY + "seed = []", "grid.toml: seed: found an empty list, expected at least one value"),
    (TINY + "[crf]\nmask = []", "grid.toml: crf_mask: found an empty list"),
    (TINY + "[row.a]\nseed = 1", "row: found a table, expected rows, exclude, or a group of settings such as crf; "
     "did you mean 'rows'?"),
    (TINY + 'method = "pce"\nlam = {seg = 0.1}\nlam_seg = 0.2', "grid.toml: lam_seg: found 0.1 and 0.2, expected one"),
    (TINY + "rows = 3", "grid.toml: rows: found 3, expected a table for each row"),
    (TINY + "[rows]\nseed = 3", "grid.toml: rows: found {'seed': 3}, expected a table for each row"),
    (TINY + "[rows.a.b]\nseed = 3", "grid.toml: rows.a: b: found a table"),
    (TINY + "[exclude]\nseed = 2022", "grid.toml: exclude: found {'seed': 2022}, expected tables with settings"),
    (TINY + "seed = 1\n[[exclude]]\nsed = 1", "grid.toml: exclude 1: found 'sed', expected one of"),
    (TINY + "seed = [1, 2]\n[[exclude]]\nsize = 32", "exclude: found all 2 jobs, expected at least one that is left"),
    (TINY + "seed = 1\n[[exclude]]\nseed = 1\n[[exclude]]\nseed = 2", "exclude 2: found no job with {'seed': 2}"),
    ("seed = [1, 2]", 'archive: found nothing, expected the folder for the results, such as "results" (all 2 jobs)'),
    (TINY + 'dataset = "acdc"', "grid.toml: profile: found none, expected mini, fast or paper"),
    (TINY + "output = 3", "grid.toml: output: found 3; Input should be a valid string (the only job)"),
    (TINY + "fold = [1, 9]", "grid.toml: phantom: fold: found 9, expected one of [1, 2, 3, 4, 5]"),
    (TINY + 'method = ["pce", "our"]\nseed = [1, 2]', "did you mean 'ours'? (method=our seed=1; method=our seed=2)"),
    (TINY + 'seed = [1, 2, 3, 4, 5]\nfold = [0, 1]', "(seed=1 fold=0; seed=2 fold=0; seed=3 fold=0; 2 more)"),
    (TINY + "data_patient = 5", "data_patient: unknown setting; did you mean 'data_patients'?"),
    (TINY + 'ssa_layer = "encoder.9"', "encoder.9"),
    (TINY + 'root = "scans"', "expected none for the phantom"),
])
def test_what_is_wrong_is_said_with_file_key_and_job(tmp_path, text, expected):
    with pytest.raises(ValueError) as caught:
        read_grid(written(tmp_path, text))
    assert expected in str(caught.value).replace(f"{tmp_path}{os.sep}", ""), str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"], "nothing was begun"


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    rows = "[rows.a]\nmethd = 'pce'", "[rows.b]\nsize = 33\nlr = -1", "[rows.c]\nlam_atn = 1\nmethod = 'pce'"
    text = "\n".join([TINY, *rows, "[rows.d]\nfold = 7"])
    with pytest.raises(ValueError) as caught:
        read_grid(written(tmp_path, text))
    said = str(caught.value).splitlines()
    assert [re.search(r"\(row (\w)", line)[1] for line in said] == ["a", "b", "b", "c", "d"], said
    assert "did you mean 'method'?" in said[0] and all("grid.toml: " in line for line in said)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file, expected a grid of runs"):
        read_grid(tmp_path / "none.toml")
    with pytest.raises(DataError, match="no such file"):
        read_grid(tmp_path)


def test_data_that_is_not_there_is_said_once(tmp_path):
    text = f'archive = "r"\ndataset = "acdc"\nprofile = "mini"\nroot = "{tmp_path}"\nseed = [1, 2]\nfold = [1, 2]'
    with pytest.raises(ValueError) as caught:
        read_grid(written(tmp_path, text))
    assert str(caught.value).count("acdc: found no patient") == 1 and str(caught.value).endswith("(all 4 jobs)")


def test_what_jobs_share_is_looked_at_once_whether_it_is_right_or_wrong(tmp_path, monkeypatch):
    looked: list[tuple[str, int]] = []

    def look(setup):
        looked.append((setup.config.method, setup.config.fold))
        if setup.config.fold == 2:
            raise DataError("patient002: no label")

    monkeypatch.setattr(grids, "check_scorable", look)
    with pytest.raises(ValueError, match="patient002: no label"):
        read_grid(written(tmp_path, TINY + 'method = ["pce", "ours"]\nfold = [1, 2]\nseed = [1, 2, 3]'))
    assert looked == [("pce", 1), ("pce", 2)]


def test_a_job_by_its_name(tmp_path):
    grid = read_grid(written(tmp_path, TINY + "seed = [1, 2]"))
    assert job_named(grid, grid.jobs[1].config.run_id) is grid.jobs[1]
    with pytest.raises(ValueError, match=r"found no run 'phantom-ours', expected one of its 2"):
        job_named(grid, "phantom-ours")
    with pytest.raises(ValueError, match=f"did you mean '{grid.jobs[0].config.run_id}'"):
        job_named(grid, grid.jobs[0].config.run_id[:-1])


# ---- done, running, begun, to do; and how long


def result_of(job: Job, **changes) -> dict:
    "What a run of a job might have written."
    config = job.config
    return {"run": config.run_id, "dataset": config.dataset, "method": config.method, "profile": config.profile,
            "machine": machine_kind(torch.device("cpu")), "processes": 1, "train_seconds": 10.0, "test_seconds": 2.0,
            "settings": config.decisive} | changes


def test_the_state_of_a_job(tmp_path):
    job, *_ = read_grid(written(tmp_path, TINY)).jobs
    assert state_of(job) == "to do" and not job.folder.exists(), "to ask changes nothing"
    job.folder.mkdir(parents=True)
    (job.folder / LOCK).touch()
    (job.folder / "checkpoint.pt").touch()
    assert state_of(job) == "begun"
    with (job.folder / LOCK).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert state_of(job) == "running"
    assert state_of(job) == "begun"
    write_json(result_of(job), job.target)
    assert state_of(job) == "done"


def test_an_estimate_rests_on_the_nearest_results_of_this_machine(tmp_path):
    job, *_ = read_grid(written(tmp_path, TINY)).jobs
    other = {"method": "pce"}, {"dataset": "acdc"}
    assert estimate(job, []).seconds is None and "unknown: no smoke on " in estimate(job, []).basis
    for changes in ({"machine": "NVIDIA H100"}, {"profile": "mini"}, {"processes": 2}):
        assert estimate(job, [result_of(job, **changes)]).seconds is None, changes
    results = [result_of(job, **other[0], **other[1], train_seconds=1.0)]
    assert estimate(job, results) == grids.Estimate(3.0, "1 × other methods on other data")
    results += [result_of(job, **other[0], train_seconds=2.0)]
    assert estimate(job, results) == grids.Estimate(4.0, "1 × other methods on phantom")
    results += [result_of(job, **other[1], train_seconds=3.0)]
    assert estimate(job, results) == grids.Estimate(5.0, "1 × ours on other data")
    results += [result_of(job, train_seconds=seconds) for seconds in (4.0, 5.0, 60.0)]
    assert estimate(job, results) == grids.Estimate(7.0, "3 × ours on phantom"), "the median"


def test_an_estimate_is_stretched_to_the_job_s_work(tmp_path):
    job, *_ = read_grid(written(tmp_path, TINY)).jobs
    smaller = result_of(job, settings=job.config.decisive | {"iterations": 1, "batch": 1, "size": 16})
    assert estimate(job, [smaller]).seconds == 10 * 5 * 2 * 4 + 2
    assert estimate(job, [result_of(job, settings={})]).seconds == 12, "a result that does not say"


def test_fewer_threads_are_another_machine(tmp_path, monkeypatch):
    job, *_ = read_grid(written(tmp_path, TINY)).jobs
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert threads_each(1) is None and threads_each(2) == 2 and threads_each(9) == 1
        one_of_eight = result_of(job, machine=machine_kind(torch.device("cpu")).replace("4 of 8", "1 of 8"))
        assert estimate(job, [one_of_eight]).seconds is None and estimate(job, [one_of_eight], threads=1).seconds == 12
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_the_dry_run_says_what_is_known(tmp_path):
    grid = read_grid(written(tmp_path, TINY + 'method = ["pce", "ours"]\nseed = [1, 2]'))
    assert dry_run(grid)[1] == "4 jobs: 4 to do, the time of 4 unknown"
    write_json(result_of(grid.jobs[0], train_seconds=298.0), grid.jobs[0].target)
    table, line = dry_run(grid)
    assert line == "4 jobs: 1 done, 3 to do, about 15.0 min"
    assert table[0] == ["run", "state", "time", "rests on"]
    assert table[1][1:] == ["done", "", ""] and table[2][1:] == ["to do", "5.0 min", "1 × pce on phantom"]
    assert table[3][1:] == ["to do", "5.0 min", "1 × other methods on phantom"]
    assert [duration(seconds) for seconds in (0.2, 59, 60, 5400)] == ["0 s", "59 s", "1.0 min", "1.5 h"]


@pytest.mark.parametrize(("text", "expected"), [
    ('{"run": "phantom-', "found no JSON"), ("[]", "only result files belong here"), ('{"a": 1}', "only result files")])
def test_what_is_no_result_is_named(tmp_path, text, expected):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_archive(tmp_path)


def test_the_result_of_another_run_is_no_target(tmp_path):
    grid = read_grid(written(tmp_path, TINY + "seed = [1, 2]"))
    write_json(result_of(grid.jobs[0]), grid.jobs[1].target)
    with pytest.raises(DataError, match="run: found 'phantom-ours-fold1-seed1"):
        plan(grid)


def test_a_result_of_other_data_is_refused_wherever_it_lies(tmp_path, monkeypatch):
    file = written(tmp_path, TINY + "seed = [1, 2]")
    first, second = read_grid(file).jobs
    now = content_id(resolve(first.config).content)
    for older in (result_of(first), result_of(first, content=now)):
        write_json(older, first.target)
        assert len(read_grid(file).jobs) == 2
    for job in (first, second):
        write_json(result_of(job, content="f" * 16), job.target)
    with pytest.raises(ValueError) as refused:
        read_grid(file)
    for line, job in zip(str(refused.value).splitlines(), (first, second), strict=True):
        assert f"{job.target}: content: found {'f' * 16}, a result of this name from other data" in line
        assert f"expected {now}, or another archive=… for this data (seed={job.config.seed})" in line
    first.target.unlink()
    second.target.unlink()
    write_json(result_of(first, content="f" * 16), first.folder / "result.json")
    assert read_grid(file).jobs, "a run that did not come to its end is run again"
    monkeypatch.setattr(grids, "_finished", lambda folder: folder == first.folder)
    with pytest.raises(ValueError, match=r"result.json: content: .*, or another output=…"):
        read_grid(file)
    with pytest.raises(DataError, match=r"result.json: content: found ffff"):
        run_job(first, tmp_path / "notebook.ipynb")
    assert not first.target.exists()


# ---- jobs of a notebook that does next to nothing


PARAMETERS = """
method: str = ""
seed: int = 0
output: str = ""
iterations: int = 0
size: int = 0
batch: int = 0
eval_every: int = 0
extra: str = ""
"""
WORK = """
import json, os, time
from pathlib import Path
(folder,) = Path(output).glob(f"*-{method}-*seed{seed}-*")
if seed == 13:
    raise ValueError("an unlucky\\n  number")
if seed == 14:
    os.kill(os.getpid(), 9)
time.sleep(30 if seed == 15 else 0)
(folder / "result.json").write_text(json.dumps({"run": folder.name, "threads": os.environ.get("OMP_NUM_THREADS")}))
"""


@pytest.fixture
def notebook(tmp_path) -> Path:
    "A notebook in place of train.ipynb."
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(WORK),
             nbformat.v4.new_code_cell("'the pictures'")]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(autouse=True)
def kernels_start_as_outside_of_tests(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # ipykernel heeds it


def starts(folder: Path) -> dict[str, int]:
    "Run → how many times papermill was started for it."
    logs = sorted(folder.glob(f"*/{LOG}"))
    return {path.parent.name: len(re.findall(r"^--- \d{4}-.* -m papermill ", path.read_text(), re.M)) for path in logs}


def test_a_job_that_fails_is_listed_and_the_others_go_on(tmp_path, notebook):
    grid = read_grid(written(tmp_path, TINY + 'method = "pce"\nseed = [13, 14, 16, 17]'), look=False)
    said: list[str] = []
    failed = run_grid(grid, notebook, jobs=2, say=said.append)
    unlucky, killed, *fine = grid.jobs
    assert list(failed) == [unlucky.config.run_id, killed.config.run_id]
    assert failed[unlucky.config.run_id].startswith("ValueError: an unlucky; number (see ")
    assert "Kernel died" in failed[killed.config.run_id]
    assert [state_of(job) for job in grid.jobs] == ["to do", "to do", "done", "done"]
    assert all((job.folder / EXECUTED).is_file() for job in fine) and len(list(fine[0].target.parent.iterdir())) == 2
    part = str(max(1, torch.get_num_threads() // 2))
    assert json.loads(fine[0].target.read_text())["threads"] == part, "each has its part of the threads"
    assert sum("started" in line for line in said) == 4 and sum("failed" in line for line in said) == 2
    assert said[-1].endswith(", 0 to go")
    assert run_grid(replace(grid, jobs=tuple(fine)), notebook) == {} and set(starts(tmp_path / "runs").values()) == {1}


def test_a_target_is_written_only_when_the_notebook_has_come_to_its_end(tmp_path, notebook):
    (job,) = read_grid(written(tmp_path, TINY + 'method = "pce"\nseed = 1'), look=False).jobs
    content = nbformat.read(notebook, 4)
    content.cells[-1].source = "1 / 0"
    nbformat.write(content, tmp_path / "broken.ipynb")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_job(job, tmp_path / "broken.ipynb")
    assert (job.folder / "result.json").is_file() and not job.target.exists()
    content.cells[-1].source = "import os; os.kill(os.getpid(), 9)"
    nbformat.write(content, tmp_path / "broken.ipynb")
    with pytest.raises(RuntimeError, match="Kernel died"):
        run_job(job, tmp_path / "broken.ipynb")
    assert not job.target.exists()
    run_job(job, notebook)
    assert job.target.is_file() and starts(tmp_path / "runs") == {job.config.run_id: 3}


def test_a_finished_run_whose_target_is_gone_is_not_run_again(tmp_path, notebook):
    (job,) = read_grid(written(tmp_path, TINY + 'method = "pce"\nseed = 1'), look=False).jobs
    kept = run_job(job, notebook).read_bytes()
    job.target.unlink()  # as Snakemake does with what it thinks is half written
    assert run_job(job, notebook).read_bytes() == kept and starts(tmp_path / "runs") == {job.config.run_id: 1}
    (job.folder / EXECUTED).write_text('{"cells": [')
    job.target.unlink()
    run_job(job, notebook)
    assert starts(tmp_path / "runs") == {job.config.run_id: 2}, "half a notebook is not the end of one"


def test_a_cell_is_done_when_its_kernel_has_answered(tmp_path):
    def finished(*answers: str, end: str = "12:00", exception: bool = False) -> bool:
        replies = [{"shell.execute_reply": answer} if answer else {} for answer in answers]
        cells = [{"cell_type": "code", "execution_count": 1, "metadata": {"papermill": {"status": "completed"},
                  "execution": {"iopub.execute_input": "11:00", **reply}}} for reply in replies]
        said = {"end_time": end or None, "exception": exception or None}
        write_json({"cells": cells, "metadata": {"papermill": said}}, tmp_path / EXECUTED)
        return grids._finished(tmp_path)

    assert not finished("11:01"), "there is no result"
    write_json({}, tmp_path / "result.json")
    assert finished("11:01", "11:02")
    assert not (finished("11:01", "") or finished("11:01", end="") or finished("11:01", exception=True) or finished())


def test_without_papermill_it_says_how_to_get_it(tmp_path, notebook, monkeypatch):
    grid = read_grid(written(tmp_path, TINY), look=False)
    monkeypatch.setattr(grids, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'attenscribble\[notebook\]'"):
        run_grid(grid, notebook)
    assert not (tmp_path / "runs").exists()


def test_a_lock_lasts_as_long_as_the_last_process_that_has_it(tmp_path):
    path, stop = tmp_path / LOCK, grids.Event()
    with grids._alone(path, stop, lambda: pytest.fail("it was free")) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    busy: list[str] = []
    try:
        assert grids._is_held(path)
        stop.set()
        with pytest.raises(KeyboardInterrupt), grids._alone(path, stop, lambda: busy.append("waits")):
            pytest.fail("it was not free")
    finally:
        child.kill()
        child.wait()
    assert busy == ["waits"] and not grids._is_held(path)


# ---- killed in the middle


GATED = """
import os, time
from dataclasses import replace
from pathlib import Path
from attenscribble.method.objective import METHODS, Term

(term,) = METHODS["pce"].terms
steps, allowed = Path(os.environ["STEPS"]), Path(os.environ["STEPS"]).with_name("allowed")


def gated(context):
    with steps.open("a") as file:
        file.write(f"{context.step} ")
    while len(steps.read_text().split()) > int(allowed.read_text()):
        time.sleep(0.05)
    return term.loss(context)


gated = replace(METHODS["pce"], name="gated", title="gated", terms=(Term(term.name, gated),))
"""  # partial cross-entropy whose iterations wait until they are allowed
GRID = """
archive = "results"
iterations = 40
size = 32
batch = 4
eval_every = 10
data = {patients = 5, side = 32, slices = 4}
method = ["mine:gated", "gated-crf"]
seed = [1, 2]
[[exclude]]
method = "gated-crf"
seed = 2
"""  # three jobs, and just enough iterations that a mask is not empty


def prepared(folder: Path, allowed: int = 1000) -> dict[str, str]:
    "A folder with a grid and a method that waits after so many iterations; the environment of its commands."
    folder.mkdir()
    written(folder, GRID)
    (folder / "mine.py").write_text(GATED)
    allow(folder, allowed)
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | {
        "STEPS": str(folder / "steps"), "OMP_NUM_THREADS": "1", "ATTENSCRIBBLE_CACHE": str(folder.parent / "cache")}


def allow(folder: Path, iterations: int) -> None:
    "So many iterations in all may begin and end."
    write_json(iterations, folder / "allowed")


def ask(folder: Path, env: dict[str, str], *command: str | Path) -> subprocess.CompletedProcess:
    "A command that is let run to its end."
    return subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)


@contextmanager
def begun(folder: Path, env: dict[str, str], *command: str | Path) -> Iterator[subprocess.Popen]:
    "A command at work; what it says goes to a file in its folder. Whatever it has started ends with the block."
    with (folder / "said").open("a") as said:
        heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # though tests in the background may ignore it
        process = subprocess.Popen([*map(str, command)], cwd=folder, env=env, stdout=said, stderr=said,
                                   start_new_session=True, preexec_fn=heeds)
    try:
        yield process
    except BaseException:
        print((folder / "said").read_text())
        raise
    finally:
        for one in family(folder):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait()


def family(folder: Path, *words: str) -> list[psutil.Process]:
    "The processes that were started for a grid: their environment names its folder; with words, those of that command."
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("STEPS") == str(folder / "steps") and process.status() != psutil.STATUS_ZOMBIE:
                line = " ".join(process.cmdline())
                found += [process] if all(word in line for word in words) else []
    return found


def wait_until(what: Callable[[], object], why: str) -> None:
    "Wait. Raises AssertionError after too long."
    ends = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < ends, f"after {SECONDS} s: not {why}"
        time.sleep(0.05)


def steps(folder: Path) -> list[int]:
    "The iterations that the waiting method has begun, in order."
    path = folder / "steps"
    return [int(word) for word in path.read_text().split()] if path.is_file() else []


def done(folder: Path) -> int:
    "How many results there are."
    return len(list((folder / "results").glob("*.json")))


def assert_as_undisturbed(folder: Path, calm: Path) -> None:
    "The same files, scores and table as those of a grid that nobody touched."
    ours, theirs = ({result["run"]: result for result in read_results(one / "results")} for one in (folder, calm))
    assert ours.keys() == theirs.keys() and len(ours) == 3
    for run, result in ours.items():
        assert json.dumps(result["cases"]) == json.dumps(theirs[run]["cases"]), run
        assert (folder / "runs" / run / EXECUTED).is_file()
    assert results_table(folder / "results").encode() == results_table(calm / "results").encode()


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    "The folder of a grid that was run by one command, two jobs at a time."
    folder = tmp_path_factory.mktemp("grids") / "calm"
    env = prepared(folder)
    assert (asked := ask(folder, env, *COMMAND, "grid.toml", "--run", "--jobs", "2")).returncode == 0, asked.stderr
    assert list(starts(folder / "runs").values()) == [1, 1, 1] and steps(folder).count(39) == 2
    scores = [row["dsc"] for result in read_results(folder / "results") for row in result["cases"]]
    assert any(scores), "scores to compare"
    return folder


def test_a_grid_that_is_killed_twice_ends_as_if_nobody_had_touched_it(tmp_path, calm):
    folder, command = tmp_path / "killed", [*COMMAND, "grid.toml", "--run"]
    env = prepared(folder, allowed=2)
    with begun(folder, env, *command) as first:
        wait_until(lambda: len(steps(folder)) == 3, "in the first training")
        first.send_signal(signal.SIGKILL)  # papermill and its kernel live on
        first.wait()
        with begun(folder, env, *command) as second:
            wait_until(lambda: WAITS in (folder / "said").read_text(), "waiting")
            allow(folder, 65)
            wait_until(lambda: done(folder) == 1 and len(steps(folder)) == 66, "in the second training")
            for process in (second, *family(folder, "-m papermill")):  # its kernel is left to itself
                process.send_signal(signal.SIGKILL)
            second.wait()
            wait_until(lambda: not family(folder), "alone: a kernel without its papermill ends itself")
        assert done(folder) == 1
        allow(folder, 1000)
        third = ask(folder, env, *command)
    assert third.returncode == 0, third.stderr
    assert third.stdout.startswith("3 jobs: 1 done, 1 begun, 1 to do"), third.stdout
    assert_as_undisturbed(folder, calm)
    for run, count in starts(folder / "runs").items():
        assert count == (2 if "mine_gated-fold1-seed2" in run else 1), f"only what was cut is started again: {run}"
    assert steps(folder) == [*range(40), *range(26), *range(20, 40)], "it went on from its checkpoint"


@pytest.fixture
def stand_in(tmp_path, notebook) -> list[str]:
    "The command, with the small notebook in place of train.ipynb."
    code = ("import sys; from pathlib import Path; from attenscribble.entry import commands as c; "
            f"c._original = lambda name: Path({str(notebook)!r}); sys.exit(c.main())")
    return [sys.executable, "-c", code, "grid"]


def test_ctrl_c_ends_what_runs_and_a_second_call_goes_on(tmp_path, stand_in):
    folder = tmp_path / "stopped"
    env = prepared(folder)
    written(folder, TINY + 'method = "pce"\nseed = [16, 15, 17]')
    with begun(folder, env, *stand_in, "grid.toml", "--run") as process:
        wait_until(lambda: done(folder) == 1 and family(folder, "ipykernel"), "in the job that takes long")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert not family(folder), "papermill and its kernel ended, too"
    said = (folder / "said").read_text().splitlines()
    assert said[-1] == "attenscribble: stopped; the same command goes on with what is missing" and done(folder) == 1
    written(folder, TINY + 'method = "pce"\nseed = [16, 17]')
    asked = ask(folder, env, *stand_in, "grid.toml", "--run")
    assert asked.returncode == 0 and asked.stdout.startswith("2 jobs: 1 done, 1 to do") and done(folder) == 2


def test_the_command_says_what_failed_and_with_which_status(tmp_path, stand_in):
    folder = tmp_path / "failing"
    env = prepared(folder)
    written(folder, TINY + 'method = "pce"\nseed = [13, 16]')
    command = partial(ask, folder, env, *stand_in, "grid.toml")
    dry = command()
    assert dry.returncode == 0 and dry.stdout.endswith("\nNext: attenscribble grid grid.toml --run\n")
    assert not (folder / "runs").exists() and not dry.stderr
    ran = command("--run")
    lines = ran.stderr.splitlines()
    assert ran.returncode == 1 and lines[0] == "attenscribble: 1 of 2 jobs failed" and len(lines) == 2, ran.stderr
    assert re.match(r"phantom-pce-fold1-seed13-\S+: ValueError: an unlucky; number \(see runs/", lines[1])
    name = next((folder / "runs").glob("*seed16*")).name
    (folder / "results" / f"{name}.json").unlink()
    one = command("--job", name)
    assert one.returncode == 0 and one.stdout.strip().endswith(f"results/{name}.json") and done(folder) == 1
    failed = command("--job", next((folder / "runs").glob("*seed13*")).name)
    assert failed.returncode == 1 and failed.stderr.startswith("attenscribble: ValueError: an unlucky; number")


@pytest.mark.parametrize(("words", "expected"), [
    (["--job", "phantom-pce"], "grid.toml: found no run 'phantom-pce', expected one of its 1"),
    (["--jobs", "0"], "argument --jobs: found '0', expected a whole number, at least 1"),
    (["--run", "--job", "phantom-pce"], "not allowed with argument --run"),
])
def test_wrong_words_are_answered_in_one_line(tmp_path, capsys, words, expected):
    try:
        status = main(["grid", str(written(tmp_path, TINY)), *words])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status in (1, 2) and expected in said.err and said.err.count("\n") == 1 and not said.out


# ---- Snakemake


def test_snakemake_that_is_killed_ends_as_if_nobody_had_touched_it(tmp_path, calm):
    if not find_spec("snakemake"):
        pytest.skip("Snakemake is not installed: pip install -c constraints.txt -e '.[grid]'")
    folder = tmp_path / "killed"
    env = prepared(folder, allowed=2)
    snakefile = ROOT / "workflow/Snakefile"
    command = [sys.executable, "-m", "snakemake", "-c1", "-s", snakefile, "--config", "grid=grid.toml"]
    with begun(folder, env, *command) as first:
        wait_until(lambda: len(steps(folder)) == 3, "in the first training")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with begun(folder, env, *command) as second:
            wait_until(lambda: WAITS in (folder / "said").read_text() or len(steps(folder)) > 3, "waiting")
            allow(folder, 1000)
            assert second.wait(timeout=SECONDS) == 0, (folder / "said").read_text()
    assert_as_undisturbed(folder, calm)
    assert list(starts(folder / "runs").values()) == [1, 1, 1], "nothing ran twice"
    assert sorted(steps(folder)) == sorted([*range(40)] * 2)
    third = ask(folder, env, *command)
    assert third.returncode == 0 and "Nothing to be done" in third.stdout + third.stderr
