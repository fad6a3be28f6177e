"""The folder of a run: written once, never over anything."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure

from neurank.agreement import compare
from neurank.errors import FileError
from neurank.ranking import Ranking
from neurank.report.run_folder import numbered_run_folder, run_folder

RANKING = Ranking.from_scores({"=cmd()": [1, 3, 2], "fc\x1b1": [1, 2, 3]})


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    assert run_folder(tmp_path / "a" / "b").path.is_dir()


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    folder = run_folder(tmp_path)
    folder.save_summary({"a": 1})
    with pytest.raises(FileError, match="not empty"):
        run_folder(tmp_path)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileError, match="is a file"):
        run_folder(tmp_path / "a")
    with pytest.raises(FileError, match="could not be written"):
        run_folder(tmp_path / "a" / "b")
    with pytest.raises(FileError, match="could not be written"):
        numbered_run_folder("demo", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def test_numbers_go_on_from_the_highest(tmp_path):
    (tmp_path / "demo-007").mkdir()
    (tmp_path / "demo-x").mkdir()
    (tmp_path / "other-900").mkdir()
    assert numbered_run_folder("demo", tmp_path).path.name == "demo-008"
    assert numbered_run_folder("demo", tmp_path).path.name == "demo-009"


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: numbered_run_folder("demo", tmp_path).path, range(24)))
    assert len(set(folders)) == 24


def test_what_is_saved_can_be_read(tmp_path):
    folder = run_folder(tmp_path / "run")
    ranking = folder.save_ranking("one", RANKING)
    text = folder.save_agreement(compare(RANKING, RANKING, k=2))
    figure = folder.save_figure("bars", Figure())
    summary = folder.save_summary({"rho": float("nan"), "top": (1, 2)})
    assert Ranking.load(ranking) == RANKING
    assert "2 of 2" in text.read_text(encoding="utf-8")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert json.loads(summary.read_text()) == {"rho": None, "top": [1, 2]}
    assert [path.name for path in folder.files] == [
        "agreement.csv", "agreement.txt", "bars.png", "one.safetensors", "summary.json",
    ]  # fmt: skip


def test_names_are_no_formulas_and_no_control_characters_in_the_csv(tmp_path):
    folder = run_folder(tmp_path / "run")
    folder.save_agreement(compare(RANKING, RANKING, k=2))
    rows = (folder.path / "agreement.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1].startswith("'=cmd(),3,2,1 2,1 2,2,")
    assert rows[2].startswith(r"fc\x1b1,3,2,2 1,2 1,2,")


def test_nothing_is_written_twice_or_elsewhere(tmp_path):
    folder = run_folder(tmp_path / "run")
    folder.save_ranking("one", RANKING)
    with pytest.raises(FileError, match="there already"):
        folder.save_ranking("one", RANKING)
    with pytest.raises(FileError, match="without a folder"):
        folder.save_ranking("../one", RANKING)
    assert not (tmp_path / "one.safetensors").exists()
