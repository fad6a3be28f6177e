"""The code in docs/weights.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, "docs/weights.md", "exec"), names)
    assert names["masks"].sparsity > 0.79
    zeros = sum(int((it == 0).sum()) for it in names["model"].parameters() if it.ndim > 1)
    assert zeros >= names["masks"].pruned
    assert "WeightScores of 5 parameters (Taylor1)" in capsys.readouterr().out
