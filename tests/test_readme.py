"""What the README promises."""

import re

from attenscribble.experiment.tables import results_table


def test_the_thirty_second_example_runs_and_reaches_every_parameter(root):
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    gradients = {name: p.grad for name, p in namespace["model"].named_parameters()}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert namespace["loss"].isfinite() and not silent


def test_the_table_of_results_is_that_of_the_result_files(root):
    text = (root / "README.md").read_text()
    table = text.split("<!-- results -->\n")[1].split("\n<!-- end of results -->")[0]
    assert table == results_table(root / "results"), "put the output of results_table('results') between the marks"
