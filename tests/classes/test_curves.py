"""Curves over the pruning ratio: every count against hooks on the user's modules, by loops."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from tests.cases import CLASSES, EXAMPLES, named
from tests.condense.nets import everything
from tests.oracles import semantic as oracle
from torch import nn

import neurank as nr
from neurank.classes.curves import curves
from neurank.classes.selection import DISCRETE, Setting
from neurank.errors import DataError, MethodError, ModelError, PlanError, RankingError, UnitError

CASE = named("perceptron")
SIZES = (9, 8, 7)
SETTINGS = (0.2, 0.5, Setting("network", 0.5), "NWP-0", "LWP-M", 0.8, 1.0)
FEW = (0.2, 0.4)
"""Where no two pictures have the same outputs but for rounding, which would decide the area."""
COUNTS = ("pictures", "hits", "gained", "lost", "others", "false_alarms", "parameters")


def data_of(case, sizes=SIZES):
    return case.batches(sizes=sizes)


def responses(case=CASE, data=None):
    return nr.rank(case.model(), data or data_of(case), nr.ClassResponse(), progress=False)


def found_by(case=CASE, data=None, ranking=None, **options):
    data = data or data_of(case)
    return curves(case.model(), data, ranking or responses(case), progress=False, **options)


def joined(data):
    return tuple(torch.cat(parts) for parts in zip(*data, strict=True))


def with_labels(data, change):
    """The same pictures, one label after another changed by a function."""
    return [
        (inputs, torch.tensor([change(it) for it in targets.tolist()])) for inputs, targets in data
    ]


def same(one, other):
    """Whether two curves have the same numbers."""
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in COUNTS
    ) and torch.allclose(one.auroc, other.auroc, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    "name",
    ["perceptron", "dropout", "many ties", "lenet, batch size asked", "in-place modules"],
)  # fmt: skip
def test_counts_are_those_of_the_masked_networks(name):
    case = named(name)
    reads = {layer: readers for layer, readers in case.reads.items() if readers}
    model, data = case.model(), data_of(case)
    inputs, targets = joined(data)
    found = found_by(case, settings=SETTINGS, others=True)
    assert found.labels == (0, 1, 2)
    assert len(found.settings) == 1 + len(SETTINGS)
    for row, label in enumerate(found.labels):
        own = int((targets == label).sum())
        assert (int(found.pictures[row]), int(found.others[row])) == (own, EXAMPLES - own)
        for at, selection in enumerate(found.selections[row]):
            removed = selection.removed
            wanted = oracle.counted(model, reads, removed, inputs, targets, label)
            for count in ("hits", "gained", "lost", "false_alarms"):
                assert int(getattr(found, count)[row, at]) == wanted[count], (label, at, count)
            low, high = wanted["auroc"]
            assert low - 1e-12 <= float(found.auroc[row, at]) <= high + 1e-12
            assert float(found.recall[row, at]) == wanted["hits"] / own
    # The test would see a difference: units do matter to these counts.
    assert len(found.hits.unique()) > 1
    assert len(found.false_alarms.unique()) > 1


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_units_are_those_that_are_selected(scope):
    ranking = responses()
    found = found_by(ranking=ranking, settings=[0.25, 0.5], scope=scope)
    for row, label in enumerate(found.labels):
        for at, theta in enumerate((0.0, 0.25, 0.5)):
            wanted = nr.classes.select(ranking, label, Setting(scope, theta))
            assert found.selections[row][at].removed == wanted.removed
            kept = found.kept(at)[row]
            assert {name: on.tolist() for name, on in kept.items()} == {
                name: on.tolist() for name, on in wanted.kept.items()
            }


def test_gains_and_losses_make_up_the_hits():
    found = found_by(settings=SETTINGS, others=True)
    assert torch.equal(found.hits, found.hits[:, :1] + found.gained - found.lost)
    assert not bool(found.gained[:, 0].any()) and not bool(found.lost[:, 0].any())  # noqa: PT018


def test_parameters_are_those_of_the_condensed_network():
    data, model = data_of(CASE), CASE.model()
    found = found_by(settings=[0.3, 0.5, 1.0])
    for row in range(CLASSES):
        for at, selection in enumerate(found.selections[row][1:-1], start=1):
            assert not selection.emptied
            small = nr.condense(model, selection.plan(), data, progress=False)
            assert int(found.parameters[row, at]) == small.report.parameters[1]
        assert int(found.parameters[row, 0]) == sum(it.numel() for it in model.parameters())
        # Where every layer is empty the biases of the outputs are left.
        assert int(found.parameters[row, -1]) == CLASSES


def test_own_pictures_alone_give_the_same_recall():
    own, others = found_by(settings=SETTINGS), found_by(settings=SETTINGS, others=True)
    for name in ("hits", "gained", "lost", "pictures", "parameters"):
        assert torch.equal(getattr(own, name), getattr(others, name))
    assert torch.equal(own.recall, others.recall)
    assert own.others is own.false_alarms is own.auroc is None
    with pytest.raises(MethodError, match="give others=True"):
        _ = own.qualities


def test_qualities_say_what_was_counted():
    found = found_by(settings=[0.5], others=True)
    for row, label in enumerate(found.labels):
        for at in range(2):
            one = found.qualities[row][at]
            assert one.label == label
            assert (one.hits, one.own) == (int(found.hits[row, at]), int(found.pictures[row]))
            assert one.false_alarms == int(found.false_alarms[row, at])
            assert one.others == int(found.others[row])
            assert one.auroc == float(found.auroc[row, at])


@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (5, 4, 3, 12), (23, 1)])
def test_how_pictures_are_cut_into_batches_does_not_matter(sizes):
    ranking = responses()
    wanted = found_by(ranking=ranking, settings=FEW, others=True)
    found = found_by(data=data_of(CASE, sizes), ranking=ranking, settings=FEW, others=True)
    assert same(found, wanted)


def test_more_pictures_of_a_class_than_run_at_once(monkeypatch):
    wanted = found_by(settings=FEW, others=True)
    monkeypatch.setattr(sys.modules[curves.__module__], "RUN_AT_ONCE", 2)
    assert same(found_by(settings=FEW, others=True), wanted)


def test_the_order_of_pictures_labels_and_settings_does_not_matter():
    wanted = found_by(settings=FEW, others=True)
    inputs, targets = joined(data_of(CASE))
    turned = [(inputs.flip(0), targets.flip(0))]
    found = found_by(
        data=turned, ranking=responses(), labels=[2, 0, 1], settings=FEW[::-1], others=True
    )
    rows, columns = [1, 2, 0], [0, *range(len(FEW), 0, -1)]
    for name in ("hits", "gained", "lost", "false_alarms", "parameters"):
        assert torch.equal(getattr(found, name)[rows][:, columns], getattr(wanted, name))
    torch.testing.assert_close(found.auroc[rows][:, columns], wanted.auroc)


def test_a_class_without_pictures_is_undefined_never_0():
    ranking = responses()
    none = with_labels(data_of(CASE), lambda label: 0 if label == 2 else label)
    found = found_by(data=none, ranking=ranking, labels=[2, 0], settings=SETTINGS)
    assert found.pictures.tolist()[0] == 0
    for name in ("hits", "gained", "lost"):
        assert not bool(getattr(found, name)[0].any())
    assert bool(found.recall[0].isnan().all())
    assert not bool(found.recall[1].isnan().any())
    # Left out where nobody asks for it.
    assert found_by(data=none, ranking=ranking, settings=[0.5]).labels == (0, 1)


def test_a_class_without_pictures_may_still_be_called():
    ranking = responses()
    none = with_labels(data_of(CASE), lambda label: 0 if label == 2 else label)
    found = found_by(data=none, ranking=ranking, labels=[2], settings=SETTINGS, others=True)
    inputs, targets = joined(none)
    assert found.others.tolist() == [EXAMPLES]
    for at, selection in enumerate(found.selections[0]):
        wanted = oracle.counted(
            CASE.model(),
            {layer: readers for layer, readers in CASE.reads.items() if readers},
            selection.removed,
            inputs,
            targets,
            2,
        )
        assert int(found.false_alarms[0, at]) == wanted["false_alarms"]
    assert bool(found.auroc.isnan().all())
    assert all(math.isnan(it.f1) for it in found.qualities[0])
    assert int(found.false_alarms.sum()) > 0


def test_a_class_that_was_not_scored_is_left_out_or_refused():
    none = with_labels(data_of(CASE), lambda label: 0 if label == 2 else label)
    ranking = responses(data=none)
    assert found_by(ranking=ranking, settings=[0.5]).labels == (0, 1)
    with pytest.raises(RankingError, match="undefined"):
        found_by(ranking=ranking, labels=[2], settings=[0.5])
    only_two = with_labels(data_of(CASE), lambda _: 2)
    with pytest.raises(DataError, match="no class has both pictures and scores"):
        found_by(data=only_two, ranking=ranking, settings=[0.5])


def test_one_picture_is_enough():
    inputs, targets = joined(data_of(CASE))
    one = [(inputs[:1], targets[:1])]
    found = found_by(data=one, ranking=responses(), settings=SETTINGS, others=True)
    assert found.labels == (int(targets[0]),)
    assert set(found.recall.flatten().tolist()) <= {0.0, 1.0}
    assert found.others.tolist() == [0]
    assert bool(found.auroc.isnan().all())
    assert math.isnan(found.qualities[0][0].false_positive_rate)


def test_a_ratio_that_empties_layers_leaves_a_network_that_gives_constants():
    found = found_by(settings=[1.0], others=True)
    bias = CASE.model().fc3.bias
    winner = int(bias.argmax())
    assert found.recall[:, 1].tolist() == [float(label == winner) for label in range(CLASSES)]
    assert found.auroc[:, 1].tolist() == [0.5] * CLASSES
    assert all(row[1].emptied == ("fc0", "fc1", "fc2") for row in found.selections)


def test_the_whole_network_is_put_in_front_once():
    def names(settings):
        return [str(it) for it in found_by(settings=settings, labels=[0]).settings]

    assert names([0.5]) == names([0.0, 0.5]) == names([0, 0.5]) == ["whole", "LWP-50"]
    assert names(["LWP-0", 0.5]) == ["whole", "LWP-0", "LWP-50"]
    assert names([0.5, 0.0]) == ["whole", "LWP-50", "whole"]
    assert names([Setting("network", 0.5)]) == ["whole", "NWP-50"]
    assert names(DISCRETE) == ["whole", *map(str, DISCRETE)]


def test_by_default_the_papers_grid():
    found = found_by(labels=[1])
    assert found.thetas == nr.classes.thetas()
    assert all(one < other for one, other in pairwise(found.thetas))
    with pytest.raises(MethodError, match="no axis"):
        _ = found_by(labels=[1], settings=["LWP-M"]).thetas


def test_the_table_has_a_row_per_class_and_setting():
    found = found_by(settings=[0.5, "NWP-M"], others=True)
    table = found.to_frame()
    assert list(table.columns) == [
        "class", "setting", "theta", "pictures", "recall", "parameters", "false_positive_rate",
        "precision", "f1", "auroc",
    ]  # fmt: skip
    assert table["class"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert table["setting"].tolist() == ["whole", "LWP-50", "NWP-M"] * 3
    assert table["theta"].tolist() == [0.0, 0.5, "median"] * 3
    assert table["recall"].tolist() == found.recall.flatten().tolist()
    assert table["parameters"].tolist() == found.parameters.flatten().tolist()
    assert table["f1"].tolist() == [it.f1 for row in found.qualities for it in row]
    assert list(found_by(settings=[0.5]).to_frame().columns) == list(table.columns[:6])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_comes_back_as_it_was(training):
    model, data = CASE.model().train(training), data_of(CASE)
    model.fc1.eval()
    before = everything(model)
    curves(model, data, responses(), settings=SETTINGS, others=True, progress=False)
    assert everything(model) == before
    with pytest.raises(DataError):
        curves(model, data, responses(), labels=[7], progress=False)
    assert everything(model) == before


@pytest.mark.parametrize("labels", [[3], [-1], [0, 99], [True], [0.5], ["cat"], [None]])
def test_labels_that_are_no_class_are_refused(labels):
    with pytest.raises(DataError, match=r"there is no class .*: the network's are 0 to 2"):
        found_by(labels=labels)


def test_labels_may_be_numbers_of_torch():
    found = found_by(labels=torch.tensor([2, 0]), settings=[0.5])
    assert found.labels == (2, 0)
    assert all(type(label) is int for label in found.labels)


def test_no_labels_and_no_settings_are_refused():
    with pytest.raises(DataError, match="names no class"):
        found_by(labels=[])
    with pytest.raises(MethodError, match="no setting is given"):
        found_by(settings=[])


@pytest.mark.parametrize("settings", [[1.5], [math.nan], ["LWP"], [True]])
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(MethodError):
        found_by(settings=settings)


def test_pictures_of_a_class_the_network_has_no_output_for_are_refused():
    beyond = with_labels(data_of(CASE), lambda label: label + 1)
    with pytest.raises(DataError, match="3"):
        found_by(data=beyond, ranking=responses(), settings=[0.5])


def test_data_without_pictures_is_refused():
    with pytest.raises(DataError):
        curves(CASE.model(), [], responses(), progress=False)


@pytest.mark.parametrize("change", [lambda rows: rows[:, 1:], lambda rows: rows.repeat(1, 2)])
def test_a_ranking_of_another_network_is_refused(change):
    layers = dict(responses().layers)
    rows = change(layers["fc1"].by_class)
    units = rows.shape[1]
    layers["fc1"] = nr.LayerRanking(
        [0.0] * units, stderr=[0] * units, counts=[1] * units, status="computed", by_class=rows
    )
    with pytest.raises(PlanError, match=f"for {units} units of layer 'fc1'.*with 5 units"):
        found_by(ranking=nr.Ranking(layers, {}), settings=[0.5])


def test_a_ranking_of_layers_that_are_not_there_or_are_outputs_is_refused():
    layers = dict(responses().layers)
    with pytest.raises(UnitError, match="no layer 'fc7'"):
        found_by(ranking=nr.Ranking({"fc7": layers["fc1"]}, {}), settings=[0.5])
    ranking = nr.rank(
        CASE.model(), data_of(CASE), nr.ClassResponse(), layers=["fc1", "fc3"], progress=False
    )
    with pytest.raises(PlanError, match="outputs"):
        found_by(ranking=ranking, settings=[0.5])


class Share(nn.Module):
    """Hidden units as shares of their sum, which is 0 where all are off."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.fc(x).exp()
        x = self.out(x)
        return x / x.sum(dim=1, keepdim=True)


def test_outputs_that_are_no_numbers_are_refused():
    torch.manual_seed(0)
    model = Share()
    nn.init.zeros_(model.out.bias)
    data = [(torch.randn(6, 3), torch.tensor([0, 1] * 3))]
    ranking = nr.rank(model, data, nr.ClassResponse(), layers=["fc"], progress=False)
    with pytest.raises(ModelError, match="LWP-100 for class 0 off, the network's outputs are NaN"):
        curves(model, data, ranking, settings=[0.5, 1.0], progress=False)


def test_only_some_layers_are_pruned():
    found = found_by(ranking=responses().select(["fc1"]), settings=[0.5, 1.0])
    assert [list(row[1].removed) for row in found.selections] == [["fc1"]] * CLASSES
    assert found.parameters[:, 1].unique().tolist() == [
        int(found.parameters[0, 0]) - 2 * (5 + 1) - 2 * 4
    ]
