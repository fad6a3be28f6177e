"""Logs: whole files or none, all steps read back, what goes to TensorBoard."""

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tests.cases import seeded
from torch import nn

import neurank as nr
from neurank.errors import FileError

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'neurank[watch]'")


@pytest.fixture(scope="module")
def look():
    with seeded("logged"):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.ReLU(),
                              nn.Linear(3, 3)).double()  # fmt: skip
        data = [(torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3)]
        with torch.no_grad():
            model[2].bias[1] = -100
    return nr.vitals(model, data)


def at(look, step):
    return replace(look, step=step)


def test_all_steps_are_read_in_order(tmp_path, look):
    log = nr.ParquetLog(tmp_path / "new" / "log")
    for step in (1000, 0, 200, 12_345_678):
        log(at(look, step))
    frame = log.read()
    assert frame["step"].unique().tolist() == [0, 200, 1000, 12_345_678]
    assert len(frame) == 4 * 8
    assert sorted(it.name for it in log.folder.iterdir()) == [
        f"step-{step:09d}.parquet" for step in (0, 200, 1000, 12_345_678)
    ]


def test_what_is_read_is_what_was_seen(tmp_path, look):
    log = nr.ParquetLog(tmp_path)
    log(look)
    frame, wanted = log.read(), look.to_frame(histograms=True)
    assert list(frame.columns) == [*wanted.columns, "loss"]
    assert frame["loss"].tolist() == pytest.approx([look.loss] * len(frame))
    for name in wanted:
        if wanted[name].dtype == "float64":
            np.testing.assert_allclose(frame[name], wanted[name], rtol=1e-6)
        else:
            assert [np.array(it).tolist() for it in frame[name]] == wanted[name].tolist()


def test_a_look_that_is_taken_again_replaces_the_one_before(tmp_path, look):
    log = nr.ParquetLog(tmp_path)
    log(at(look, 5))
    log(replace(look, step=5, loss=0.25))
    assert log.read()["loss"].unique().tolist() == [0.25]


def test_a_draft_is_not_read(tmp_path, look, monkeypatch):
    log = nr.ParquetLog(tmp_path)
    log(at(look, 1))

    def broken(_frame, path, **_):
        path.write_bytes(b"PAR1 half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", broken)
        with pytest.raises(KeyboardInterrupt):
            log(at(look, 2))
    assert (tmp_path / "step-000000002.draft").exists()
    assert log.read()["step"].unique().tolist() == [1]
    log(at(look, 2))
    assert log.read()["step"].unique().tolist() == [1, 2]
    assert not (tmp_path / "step-000000002.draft").exists()


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files(tmp_path):
    program = f"""
        import itertools, torch, neurank as nr
        from dataclasses import replace
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        look = nr.vitals(model, [(torch.randn(20, 4), torch.arange(20) % 3)])
        log = nr.ParquetLog({str(tmp_path)!r})
        for step in itertools.count():
            log(replace(look, step=step))
    """
    for _ in range(3):
        before = len(list(tmp_path.glob("*.parquet")))
        running = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
        try:
            while len(list(tmp_path.glob("*.parquet"))) <= max(before, 3):
                assert running.poll() is None
                time.sleep(0.01)
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
        frame = nr.ParquetLog(tmp_path).read()
        steps = frame["step"].unique()
        assert (frame.groupby("step").size() == 5).all()
        assert steps.tolist() == list(range(len(steps)))


def test_an_empty_folder_and_one_that_cannot_be_made_are_named(tmp_path):
    with pytest.raises(FileError, match="has no look in it"):
        nr.ParquetLog(tmp_path).read()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file cannot be made"):
        nr.ParquetLog(tmp_path / "file")


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FileError, match=r"ParquetLog needs pyarrow.*neurank\[watch\]"):
        nr.ParquetLog(tmp_path)
    with pytest.raises(FileError, match=r"TensorBoardLog needs tensorboard.*neurank\[watch\]"):
        nr.TensorBoardLog(tmp_path)


class Recorder:
    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram(self, tag, values, step):
        self.histograms[tag, step] = values


def test_tensorboard_gets_counts_and_distributions_of_every_layer(look):
    writer = Recorder()
    nr.TensorBoardLog(writer)(at(look, 7))
    assert writer.scalars == {
        ("neurank/loss", 7): look.loss,
        ("neurank/0/dead units", 7): 0.0,
        ("neurank/0/frozen units", 7): 0.0,
        ("neurank/2/dead units", 7): 1.0,
        ("neurank/2/frozen units", 7): 1.0,
    }
    wanted = {
        "mean replacement saliency": "saliency",
        "output gradient": "gradient_norm",
        "incoming weights": "weight_norm",
        "outgoing weights": "fan_out_norm",
    }
    assert {tag for tag, _ in writer.histograms} == {
        f"neurank/{layer}/{name}" for layer in ("0", "2") for name in wanted
    }
    for name, sign in wanted.items():
        assert torch.equal(
            writer.histograms[f"neurank/2/{name}", 7], getattr(look.layers["2"].signs, sign)
        )


def test_tensorboard_is_not_told_of_weights_that_are_not_known(look):
    unknown = torch.full((5,), torch.nan)
    layer = look.layers["0"]
    layer = replace(layer, signs=replace(layer.signs, fan_out_norm=unknown))
    writer = Recorder()
    nr.TensorBoardLog(writer)(replace(look, layers={"0": layer}))
    assert ("neurank/0/incoming weights", 0) in writer.histograms
    assert ("neurank/0/outgoing weights", 0) not in writer.histograms


def test_a_folder_for_tensorboard_is_written(tmp_path, look):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    log = nr.TensorBoardLog(tmp_path / "board")
    log(look)
    log.writer.close()
    assert list((tmp_path / "board").iterdir())
