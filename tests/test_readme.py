"""What the README promises."""

import re

import attenscribble
from attenscribble.annotation import annotator
from attenscribble.annotation.session import open_session
from attenscribble.basics.files import write_json
from attenscribble.data.phantom import phantom
from attenscribble.reporting.tables import (
    compare,
    describe,
    order_agreement,
    read_results,
    results_table,
    write_table,
)
from attenscribble.runs.inference import save_mask, save_volume


def run(root, heading: str) -> dict:
    "The names that the Python under a heading leaves behind."
    section = (root / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    return namespace


def test_the_annotators_example_opens_a_scan(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heart = next(phantom(patients=1, side=48, slices=3).cases())
    save_volume(heart.image, heart, tmp_path / "scan.nii.gz")
    opened = []
    monkeypatch.setattr(annotator, "open_session", lambda *given: opened.append(open_session(*given)) or opened[-1])
    run(root, "Draw in the notebook")
    assert opened[0].labels.names == ("background", "liver", "spleen") and opened[0].root == tmp_path / "annotated"


def test_the_example_goes_from_a_folder_to_masks(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for case in phantom(patients=5, side=48, slices=3).cases():
        name = f"{case.patient}_{case.frame}.nii.gz"
        save_volume(case.image, case, tmp_path / "my-scans/images" / name)
        save_mask(case.scribble, case, tmp_path / "my-scans/scribbles" / name)
    meaning = {"labels": {"background": 0, "RV": 1, "Myo": 2, "LV": 3}, "ignore": 4}
    write_json(meaning, tmp_path / "my-scans/dataset.json")
    save_volume(case.image, case, tmp_path / "new-scans/new.nii.gz")
    train = attenscribble.train
    monkeypatch.setattr(attenscribble, "train", lambda source: train(source, iterations=2, size=48, batch=4))
    run(root, "Your own scans")
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["new.nii.gz"]
    assert "no problems" in capsys.readouterr().out


def test_the_thirty_second_example_runs_and_reaches_every_parameter(root):
    namespace = run(root, "Thirty seconds of Python")
    gradients = {name: p.grad for name, p in namespace["model"].named_parameters()}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert namespace["loss"].isfinite() and not silent


def test_the_table_of_results_is_that_of_the_result_files(root):
    text = (root / "README.md").read_text()
    for dataset in ("acdc", "chaos"):
        table = text.split(f"<!-- {dataset} -->\n")[1].split(f"\n<!-- end of {dataset} -->")[0]
        assert table == results_table(root / "results", dataset=dataset), "between the marks goes results_table(…)"


def test_the_order_beside_the_paper_is_that_of_the_result_files(root):
    agreement = order_agreement(compare(read_results(root / "results", profile="mini"), 1))
    said = f"{agreement['dsc'].tau:.2f} by DSC and\n{agreement['hd95_mm'].tau:.2f} by HD95"
    assert said in (root / "README.md").read_text() and len(agreement["dsc"].methods) == 12


def test_the_tables_in_figures_are_those_of_the_result_files(root, tmp_path):
    results = read_results(root / "results")
    for table in (1, 2):
        for path in write_table(compare(results, table), describe(results, table), f"table{table}", tmp_path):
            kept = (root / "figures" / path.name).read_text()
            assert kept == path.read_text(), f"{path.name} is out of date: papermill tables.ipynb, in nbs"


def test_the_ablation_that_the_readme_quotes_is_on_file(root):
    (result,) = read_results(root / "results" / "ablation")
    average = compare([result], 1).dropna(how="all", axis=0).query("seeds > 0")
    dsc, hd95 = (average[metric]["Avg"]["ours_mean"].item() for metric in ("dsc", "hd95_mm"))
    assert f"it reaches {dsc:.2f} and {hd95:.1f} mm" in (root / "README.md").read_text()
    assert result["settings"]["ssa_block"] == "residual" and result["preset"] == "paper"
