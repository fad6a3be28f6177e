"""The code in docs/classes.md runs as it stands."""

import re
from pathlib import Path

import neurank as nr

PAGE = (Path(__file__).parents[2] / "docs" / "classes.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, "docs/classes.md", "exec"), names)
    assert names["responses"]["conv2"].by_class.shape[0] == 10
    assert names["three"].report.parameters[1] < 4026
    assert names["three"].measured(names["splits"].test).f1 > 0.5
    again = nr.load(tmp_path / "three.safetensors", nr.zoo.digits_net)
    assert again.model.output.out_features == 2
