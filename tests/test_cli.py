"""The commands from a user's side: what they print, write and refuse, and how they exit."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import neurank as nr
from neurank.cli import app, demo
from neurank.rankers.registry import METHODS

NET = "digits_net:3,4,8,6"
RUN = CliRunner()

USER_CODE = '''
"""Somebody else's network and data."""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from settings import SCALE
import neurank as nr


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Linear(36, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 10))

    def forward(self, x):
        return self.head(self.body(x * SCALE).view(-1, 36))


def make():
    torch.manual_seed(3)
    return Net()


def small():
    return nr.load("small.safetensors", make).model


def parts():
    digits = nr.data.load("digits")
    sets = (digits.train.first(200), digits.validation.first(90), digits.test.first(60))
    return [DataLoader(TensorDataset(s.inputs, s.targets), batch_size=64) for s in sets]
'''


def neurank(*words, code=0):
    """Run a command line; it must exit with `code`, and on failure with one line."""
    result = RUN.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    if code:
        assert result.stdout == ""
        assert result.stderr.startswith("neurank: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
    return result


def refusal(*words, code=2):
    return neurank(*words, code=code).stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a trained network and two rankings of it."""
    folder = tmp_path_factory.mktemp("made")
    weights = ("--weights", folder / "w.safetensors")
    neurank("train", NET, "digits", "--out", weights[1], "--epochs", 8)
    norm, switch = folder / "norm.safetensors", folder / "switch.safetensors"
    neurank("rank", NET, "digits", *weights, "--method", "weight-norm", "--out", norm)
    neurank(
        "rank", NET, "digits", *weights, "--method", "switch", "--epochs", 1, "--first", 100,
        "--out", switch,
    )  # fmt: skip
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, with a user's code."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(USER_CODE)
    Path("settings.py").write_text("SCALE = 1.0")
    return tmp_path


class TestTrain:
    def test_weights_are_a_plain_state_dict_of_the_named_widths(self, made):
        state = load_file(made / "w.safetensors")
        assert state["fc1.weight"].shape[0] == 8
        nr.zoo.digits_net(3, 4, 8, 6).load_state_dict(state)

    def test_it_says_what_came_out_and_what_is_next(self, tmp_path):
        out = tmp_path / "w.safetensors"
        shown = neurank("train", NET, "digits", "--out", out, "--epochs", 1).stdout
        assert "test error" in shown
        assert f"wrote {out}" in shown
        assert f"neurank rank {NET} digits --weights {out}" in shown

    def test_json_is_all_there_is_on_standard_output(self, tmp_path):
        words = ("--epochs", 2, "--lr", 0.05, "--seed", 4, "--json")
        result = neurank("train", NET, "digits", "--out", tmp_path / "w.safetensors", *words)
        read = json.loads(result.stdout)
        assert read["epochs"] == 2
        assert read["lr"] == 0.05
        assert len(read["losses"]) == 2
        assert 0 <= read["test_error"] <= 1

    def test_the_same_seed_gives_the_same_file(self, tmp_path):
        files = [tmp_path / f"{name}.safetensors" for name in "ab"]
        for file in files:
            neurank("train", NET, "digits", "--out", file, "--epochs", 1, "--seed", 5)
        first, second = map(load_file, files)
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("w.pt", "is not a .safetensors file"),
            ("no/w.safetensors", "there is no folder"),
        ],
    )
    def test_a_bad_name_is_refused_before_training(self, out, message, desk, monkeypatch):
        monkeypatch.setattr("neurank.cli.train.fit", lambda *_, **__: pytest.fail("it trained"))
        assert message in refusal("train", NET, "digits", "--out", desk / out)

    @pytest.mark.usefixtures("desk")
    def test_epochs_must_be_positive(self):
        assert "--epochs" in refusal(
            "train", NET, "digits", "--out", "w.safetensors", "--epochs", 0
        )


class TestRank:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_ranks_and_saves(self, made, tmp_path, method):
        words = ("--method", method, "--layers", "fc1,fc2", "--first", 40)
        out = tmp_path / "r.safetensors"
        weights = ("--weights", made / "w.safetensors")
        shown = neurank("rank", NET, "digits", *weights, *words, "--out", out).stdout
        ranking = nr.Ranking.load(out)
        assert list(ranking) == ["fc1", "fc2"]
        assert ranking.method == METHODS[method].__name__
        assert str(ranking) in shown
        assert f"wrote {out}" in shown

    def test_it_is_what_python_says(self, made, tmp_path, digits):
        out = tmp_path / "r.safetensors"
        words = ("--passes", 3, "--value", "margin", "--removal", "mean", "--seed", 7)
        weights = ("--weights", made / "w.safetensors")
        neurank("rank", NET, "digits", *weights, *words, "--first", 80, "--out", out)
        model = nr.zoo.digits_net(3, 4, 8, 6)
        model.load_state_dict(load_file(made / "w.safetensors"))
        wanted = nr.rank(
            model,
            digits.validation.first(80),
            nr.PermutationShapley(passes=3),
            value=nr.Margin(),
            removal="mean",
            seed=7,
        )
        found = nr.Ranking.load(out)
        assert dict(found.layers) == dict(wanted.layers)
        assert found.provenance["value"] == "Margin()"

    def test_switches_are_learnt_on_training_data_and_others_scored_on_validation(self, made):
        counts = {
            name: nr.Ranking.load(made / f"{name}.safetensors").provenance["data"]["digest"]
            for name in ("norm", "switch")
        }
        splits = nr.data.load("digits")
        for name, data in (("norm", splits.validation), ("switch", splits.train.first(100))):
            model = nr.zoo.digits_net(3, 4, 8, 6, seed=0)
            ranking = nr.rank(model, data, nr.RandomScore())
            assert counts[name] == ranking.provenance["data"]["digest"]

    def test_json_is_all_there_is_on_standard_output(self, made, tmp_path):
        out = tmp_path / "r.safetensors"
        weights = ("--weights", made / "w.safetensors")
        result = neurank("rank", NET, "digits", *weights, "--first", 40, "--out", out, "--json")
        read = json.loads(result.stdout)
        assert read["written"] == str(out)
        ranking = nr.Ranking.load(out)
        assert read["layers"]["fc1"]["scores"] == ranking["fc1"].scores.tolist()
        assert read["layers"]["fc1"]["order"] == list(ranking.order("fc1"))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--method", "shapley"), "give one of exact, permutation"),
            (("--p", 2), "--p is not an option of --method permutation, but of weight-norm"),
            (("--method", "weight-norm", "--p", -1), "positive p"),
            (("--passes", 3, "--antithetic"), "must be even"),
            (("--passes", "many"), "--passes"),
            (("--layers", "fc9"), "no layer 'fc9'"),
            (("--layers", "fc1,fc1"), "named twice"),
            (("--removal", "gone"), "'zero', 'mean', 'parameters'"),
            (("--value", "f1"), "give accuracy, loss, margin, or recall:3"),
            (("--value", "recall:ten"), "recall:3"),
            (("--value", "recall:12"), "the classes of digits are 0 to 9"),
            (("--split", "test"), "for final errors alone"),
            (("--first", 9999), "ask for 1 to 300"),
            (("--method", "exact", "--max-operations", 10), "max_operations=1e+01"),
            (("--bogus", 1), "--bogus"),
            (("--stop", "soon"), "give stderr:0.001"),
            (("--stop", "top:many"), "give stderr:0.001"),
            (("--stop", "seconds:-1"), "a positive number is needed"),
            (("--stop", "top:5", "--passes", 1), "allow more passes"),
            (("--max-memory", "much"), "give one as in 500M or 2G"),
            (("--max-memory", "0"), "max_memory=0"),
            (("--resume",), "leave --resume out"),
        ],
    )
    def test_wrong_options_are_refused_in_one_line(self, made, tmp_path, words, message):
        weights = ("--weights", made / "w.safetensors")
        out = tmp_path / "r.safetensors"
        assert message in refusal("rank", NET, "digits", *weights, "--out", out, *words)
        assert not out.exists()

    def test_it_stops_by_a_rule_and_says_so(self, made, tmp_path):
        out = tmp_path / "r.safetensors"
        words = ("--weights", made / "w.safetensors", "--layers", "fc2", "--stop", "stderr:0.004")
        shown = neurank("rank", NET, "digits", *words, "--out", out).stdout
        ranking = nr.Ranking.load(out)
        record = ranking.provenance["by_layer"]["fc2"]
        assert f"fc2: {record['repetitions']} repetitions of 300 examples, StderrBelow" in shown
        assert 0 < ranking["fc2"].stderr.max() <= 0.004

    def test_interrupted_it_says_how_to_go_on_and_then_does_only_the_rest(
        self, made, tmp_path, monkeypatch
    ):
        out, journal = tmp_path / "r.safetensors", tmp_path / "r.journal"
        words = ["rank", NET, "digits", "--weights", str(made / "w.safetensors"), "--layers",
                 "fc1,fc2", "--passes", "2", "--batch-size", "50", "--out", str(out)]  # fmt: skip
        neurank(*words)
        wanted = nr.Ranking.load(out)
        assert not journal.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]
        play, calls = nr.PermutationShapley.play, []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == 17:  # two for each batch: four batches of the second layer are left
                raise KeyboardInterrupt
            return play(*arguments)

        monkeypatch.setattr(nr.PermutationShapley, "play", interrupted)
        monkeypatch.setattr("sys.argv", ["neurank", *words])
        said = refusal(*words, code=130)
        again = shlex.split(said.partition("Go on with: ")[2])
        assert again == ["neurank", *words, "--resume"]
        assert "8 finished chunks" in said
        assert "add --resume to go on with it, or delete it" in refusal(*words)
        assert "method.parameters.passes" in refusal(*words, "--passes", "4", "--resume")
        shown = neurank(*again[1:]).stdout
        assert len(calls) == 17 + 2 * 4
        assert "resumed: 8 of 12 chunks were finished" in shown
        assert not journal.exists()
        assert dict(nr.Ranking.load(out).layers) == dict(wanted.layers)

    def test_a_journal_that_is_named_is_kept(self, made, tmp_path):
        out, journal = tmp_path / "r.safetensors", tmp_path / "kept.journal"
        words = ("--weights", made / "w.safetensors", "--layers", "fc2", "--first", 40)
        neurank("rank", NET, "digits", *words, "--out", out, "--journal", journal)
        assert journal.is_file()

    @pytest.mark.parametrize(
        ("model", "data", "message"),
        [
            ("resnet", "digits", "give lenet, digits_net"),
            ("lenet", "digits", "comes untrained"),
            ("lenet:5", "digits", "give 4 whole numbers"),
            (NET, "imagenet", "give one of digits, mnist:DIR"),
            (NET, "mnist", "give mnist:DIR"),
            (NET, "mnist:nowhere", "nowhere has neither"),
            ("digits_net", "digits", "of other widths"),
            ("mine.py:Nothing", "digits", "it has Net, make, small, parts"),
            ("mine.py:make", "digits", "it lacks body.0.weight"),
            ("there.py:make", "digits", "there is no file there.py"),
            ("there.isnt:make", "digits", "no module 'there.isnt'"),
        ],
    )
    def test_wrong_models_and_data_are_refused(self, made, desk, model, data, message):
        given = () if model == "lenet" else ("--weights", made / "w.safetensors")
        assert message in refusal("rank", model, data, *given, "--out", "r.safetensors")
        assert not (desk / "r.safetensors").exists()

    def test_an_input_is_not_overwritten(self, made):
        weights = made / "w.safetensors"
        before = weights.read_bytes()
        refused = refusal("rank", NET, "digits", "--weights", weights, "--out", weights)
        assert "one of the inputs" in refused
        assert weights.read_bytes() == before


class TestCompare:
    def test_it_prints_the_table(self, made):
        files = (made / "norm.safetensors", made / "switch.safetensors")
        a, b = map(nr.Ranking.load, files)
        assert neurank("compare", *files, "-k", 3).stdout == f"{nr.compare(a, b, k=3)}\n"

    def test_each_layer_may_have_its_own_k(self, made):
        files = (made / "norm.safetensors", made / "switch.safetensors")
        k = "conv1=2,conv2=3,fc1=4,fc2=5"
        read = json.loads(neurank("compare", *files, "-k", k, "--json").stdout)
        assert [layer["k"] for layer in read["layers"].values()] == [2, 3, 4, 5]

    def test_rankings_by_one_method_are_called_by_their_files(self, made, tmp_path):
        copy = tmp_path / "again.safetensors"
        copy.write_bytes((made / "norm.safetensors").read_bytes())
        shown = neurank("compare", made / "norm.safetensors", copy, "-k", 2).stdout
        assert " norm " in shown
        assert " again " in shown

    def test_a_k_that_does_not_fit_is_refused_with_one_that_does(self, made):
        files = (made / "norm.safetensors", made / "switch.safetensors")
        refused = refusal("compare", *files)
        assert "give -k conv1=3,conv2=4,fc1=5,fc2=5" in refused
        neurank("compare", *files, "-k", "conv1=3,conv2=4,fc1=5,fc2=5")
        assert "not of the form" in refusal("compare", *files, "-k", "many")

    def test_other_files_are_refused(self, made, tmp_path):
        good = made / "norm.safetensors"
        assert "a 'ranking'" in refusal("compare", good, made / "w.safetensors")
        assert "is not there" in refusal("compare", good, tmp_path / "none.safetensors")
        torn = tmp_path / "torn.safetensors"
        torn.write_bytes(good.read_bytes()[:-1])
        assert "refused" in refusal("compare", good, torn)


class TestCondense:
    def condensed(self, made, out, *words):
        given = ("--weights", made / "w.safetensors", "--ranking", made / "norm.safetensors")
        return neurank("condense", NET, "digits", *given, "--out", out, *words)

    def test_the_file_holds_what_the_plan_keeps(self, made, tmp_path):
        out = tmp_path / "small.safetensors"
        shown = self.condensed(made, out, "--keep", "conv1=2,fc1=5").stdout
        small = nr.load(out, lambda: nr.zoo.digits_net(3, 4, 8, 6))
        best = nr.Ranking.load(made / "norm.safetensors").top(5, "fc1")
        assert small.plan.keep["fc1"] == tuple(sorted(best))
        assert small.model.fc1.out_features == 5
        assert small.model.conv2.out_channels == 4
        assert str(small.report) in shown
        assert "test error, condensed" in shown

    def test_the_line_for_python_works(self, made, tmp_path):
        out = tmp_path / "small.safetensors"
        shown = self.condensed(made, out, "--ratio", 0.5).stdout
        (line,) = [line for line in shown.splitlines() if line.startswith("in Python: ")]
        model = eval(line.removeprefix("in Python: "), {"neurank": nr})
        assert model.fc1.out_features == 4

    def test_json_has_the_figures(self, made, tmp_path):
        out = tmp_path / "small.safetensors"
        words = ("--ratio", "fc1=0.25", "--removal", "mean", "--retrain", 1, "--json")
        read = json.loads(self.condensed(made, out, *words).stdout)
        assert len(read["plan"]["fc1"]) == 6
        assert read["removal"] == "mean"
        assert read["check"]["max_error"] <= read["check"]["tolerance"]
        assert set(read["test_error"]) == {"before", "condensed", "retrained"}
        model = nr.load(out, lambda: nr.zoo.digits_net(3, 4, 8, 6)).model
        digits = nr.data.load("digits")
        errors = [nr.error_rate(model, split) for split in (digits.test, digits.validation)]
        assert errors[0] == read["test_error"]["retrained"]
        assert errors[0] != errors[1]  # or this could not tell the splits apart

    def test_budgets_hold(self, made, tmp_path):
        out = tmp_path / "small.safetensors"
        whole = nr.zoo.digits_net(3, 4, 8, 6)
        words = (
            "--max-params",
            250,
            "--max-macs",
            4000,
            "--min-width",
            "conv1=2",
            "--ignored",
            "fc2",
        )
        read = json.loads(self.condensed(made, out, *words, "--json").stdout)
        before, after = read["report"]["parameters"]
        assert after <= 250 < before
        assert read["report"]["multiply_adds"][1] <= 4000
        assert len(read["plan"]["conv1"]) >= 2
        assert nr.load(out, lambda: whole).model.fc2.out_features == 6

    def test_the_accuracy_may_fall_so_far(self, made, tmp_path):
        out = tmp_path / "small.safetensors"
        self.condensed(made, out, "--max-drop", 0.05)
        plan = nr.load(out, lambda: nr.zoo.digits_net(3, 4, 8, 6)).plan
        assert any(plan.removed(layer) for layer in plan.keep)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "none was given"),
            (("--ratio", 0.5, "--keep", "fc1=2"), "two of them were given"),
            (("--ratio", 0.5, "--border", "soft"), "'exact' or 'folded'"),
            (("--max-params", 10), "10"),
            (("--max-params", 400, "--across", "luck"), "'share'"),
            (("--ratio", 1.0), "1"),
            (("--ratio", "half"), "not of the form"),
            (("--keep", "fc1"), "not of the form"),
            (("--keep", "fc1=two"), "not of the form"),
            (("--keep", "fc1=2,fc1=3"), "once"),
            (("--keep", "fc1=0"), "fc1"),
            (("--keep", "fc1=99"), "99"),
            (("--keep", "fc9=2"), "fc9"),
            (("--ratio", 0.5, "--removal", "gone"), "'zero', 'mean', 'parameters'"),
        ],
    )
    def test_wrong_plans_are_refused(self, made, tmp_path, words, message):
        given = ("--weights", made / "w.safetensors", "--ranking", made / "norm.safetensors")
        out = tmp_path / "small.safetensors"
        assert message in refusal("condense", NET, "digits", *given, "--out", out, *words)
        assert not out.exists()

    def test_a_ranking_of_another_network_is_refused(self, made, tmp_path):
        other = tmp_path / "other.safetensors"
        neurank("train", NET, "digits", "--out", other, "--epochs", 1, "--seed", 9)
        given = ("--weights", other, "--ranking", made / "norm.safetensors", "--ratio", 0.5)
        out = tmp_path / "small.safetensors"
        assert "other weights" in refusal("condense", NET, "digits", *given, "--out", out)


class TestSomebodyElsesNetwork:
    @pytest.mark.usefixtures("desk")
    def test_all_steps_in_an_empty_folder(self):
        mine = ("mine.py:make", "mine.py:parts")
        weights = ("--weights", "w.safetensors")
        neurank("train", *mine, "--out", "w.safetensors", "--epochs", 2)
        neurank("rank", *mine, *weights, "--out", "a.safetensors")
        neurank("rank", *mine, *weights, "--out", "b.safetensors", "--method", "random")
        neurank("compare", "a.safetensors", "b.safetensors", "-k", 2)
        given = ("--ranking", "a.safetensors", "--ratio", 0.5, "--retrain", 1)
        neurank("condense", *mine, *weights, *given, "--out", "small.safetensors")
        # the small network is ranked in its turn, by a dotted name, and no weights file
        neurank("rank", "mine:small", "mine:parts", "--out", "c.safetensors")
        assert nr.Ranking.load("c.safetensors")["head.0"].units == 4

    def test_a_condensed_file_as_weights_is_refused_with_what_to_write(self, made, desk):
        small = desk / "small.safetensors"
        given = ("--weights", made / "w.safetensors", "--ranking", made / "norm.safetensors")
        neurank("condense", NET, "digits", *given, "--ratio", 0.5, "--out", small)
        refused = refusal("rank", NET, "digits", "--weights", small, "--out", "r.safetensors")
        assert "def small()" in refused

    @pytest.mark.usefixtures("desk")
    def test_a_pickle_is_refused_and_the_command_given_converts_it(self):
        model = nr.zoo.digits_net(3, 4, 8, 6, seed=0)
        torch.save(model.state_dict(), "w.pt")
        refused = refusal(
            "rank", NET, "digits", "--weights", "w.pt", "--out", "r.safetensors", code=2
        )
        assert "can run code" in refused
        program = shlex.split(refused.partition("python -c ")[2])[0]
        exec(program)
        neurank(
            "rank", NET, "digits", "--weights", "w.safetensors", "--method", "random",
            "--out", "r.safetensors",
        )  # fmt: skip

    @pytest.mark.usefixtures("desk")
    def test_what_the_users_code_raises_is_one_line(self):
        Path("bad.py").write_text("def make():\n    raise RuntimeError('no\\nluck')\n\n1/0\n")
        refused = refusal("rank", "bad.py:make", "digits", "--out", "r.safetensors")
        assert "ZeroDivisionError: division by zero" in refused
        Path("bad2.py").write_text("def make():\n    raise RuntimeError('no\\n\\x1b[2Jluck')\n")
        refused = refusal("rank", "bad2.py:make", "digits", "--out", "r.safetensors")
        assert r"RuntimeError: no \x1b[2Jluck" in refused

    @pytest.mark.usefixtures("desk")
    def test_a_forward_that_fails_exits_with_one_and_traceback_shows_where(self):
        Path("bad.py").write_text(
            "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(3, 2))\n"
        )
        words = ("rank", "bad.py:make", "digits", "--out", "r.safetensors")
        assert "--traceback" in refusal(*words, code=1)
        result = RUN.invoke(app, ["--traceback", *words])
        assert isinstance(result.exception, RuntimeError)


class TestEveryCommand:
    def test_help_and_version(self):
        for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
            result = RUN.invoke(app, words)
            assert result.exit_code == 0
            assert "Usage" in result.stdout
        assert neurank("--version").stdout.strip() == nr.__version__

    def test_an_unknown_command_is_one_line(self):
        assert "condens" in refusal("condens")

    def test_what_is_missing_is_named(self):
        assert "--out" in refusal("train", "lenet", "digits")
        assert "DATA" in refusal("rank", "lenet")

    def test_ctrl_c_is_one_line_and_130(self, desk, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("neurank.cli.train.fit", interrupted)
        assert "interrupted" in refusal("train", NET, "digits", "--out", "w.safetensors", code=130)
        assert not (desk / "w.safetensors").exists()

    @pytest.mark.usefixtures("desk")
    def test_a_full_disk_is_a_failure_and_no_wrong_input(self, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        words = ("train", NET, "digits", "--out", "w.safetensors", "--epochs", 1)
        assert "No space left" in refusal(*words, code=1)

    @pytest.mark.usefixtures("desk")
    def test_running_out_of_memory_is_a_failure_with_a_remedy(self, monkeypatch):
        def full(*_, **__):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

        monkeypatch.setattr("neurank.cli.train.fit", full)
        refused = refusal("train", NET, "digits", "--out", "w.safetensors", code=1)
        assert "smaller --batch-size" in refused

    @pytest.mark.usefixtures("desk")
    def test_markup_in_a_name_is_printed_as_it_stands(self):
        assert "[red]lenet[/red]" in refusal(
            "rank", "[red]lenet[/red]", "digits", "--out", "r.safetensors"
        )

    @pytest.mark.usefixtures("desk")
    def test_saved_weights_of_others_are_read(self):
        state = nr.zoo.digits_net(3, 4, 8, 6, seed=0).state_dict()
        save_file(state, "plain.safetensors")
        save_file({f"module.{name}": tensor for name, tensor in state.items()}, "dp.safetensors")
        words = ("rank", NET, "digits", "--method", "random", "--out", "r.safetensors")
        neurank(*words, "--weights", "plain.safetensors")
        assert "begin with 'module.'" in refusal(*words, "--weights", "dp.safetensors")


COMMANDS = ("demo", "train", "rank", "compare", "condense")


class TestDemo:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        for name in ("EPOCHS", "AGAIN", "SWITCH_EPOCHS", "PASSES", "RANDOM_DRAWS"):
            monkeypatch.setattr(demo, name, 2)
        digits = nr.data.load("digits", batch_size=50)
        few = replace(digits, validation=digits.validation.first(40))
        monkeypatch.setattr(nr.data, "load", lambda *_, **__: few)

    def test_it_leaves_all_it_says_and_its_next_commands_run(self, desk):
        shown = neurank("demo").stdout
        folder = desk / "runs" / "demo-001"
        files = sorted(path.name for path in folder.iterdir())
        assert files == sorted(
            ["agreement.csv", "agreement.txt", "maps.png", "scores.png", "shapley.safetensors",
             "small.safetensors", "summary.json", "switches.safetensors", "weights.safetensors"]
        )  # fmt: skip
        assert all(f"  {name} " in shown for name in files)
        assert (folder / "agreement.txt").read_text(encoding="utf-8") in shown
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["condensed"]["Shapley values"][0]["max_error"] <= 1e-5
        commands = [line for line in shown.splitlines() if line.startswith("  neurank ")]
        assert len(commands) == 2
        for line in commands:
            neurank(*shlex.split(line)[1:])
        python = shown.splitlines()[-1].strip()
        model = eval(python, {"neurank": nr})
        assert model.fc1.out_features == 16

    def test_json_and_a_folder_of_ones_own(self, desk):
        threads = torch.get_num_threads()
        read = json.loads(neurank("demo", "--out", "mine", "--seed", 1, "--json").stdout)
        assert read["seed"] == 1
        assert all(Path(path).is_file() for path in read["written"])
        assert torch.get_num_threads() == threads
        assert "not empty" in refusal("demo", "--out", "mine")
        assert not (desk / "runs").exists()
