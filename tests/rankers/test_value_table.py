from itertools import combinations

import numpy as np
import pytest
import torch
from tests.cases import CASES, look, named, watch
from tests.oracles.game import Oracle
from torch import nn

import neurank as nr
from neurank.errors import FileError, MethodError, UnitError
from neurank.rankers.draws import share_of_coalitions
from neurank.rankers.indices import walk
from neurank.rankers.measure import measure
from neurank.rankers.value_table import ValueTable, value_table


def table_of(case, layer, **options):
    return value_table(case.model(), case.batches(), layer, progress=False, **options)


def by_oracle(oracle):
    return [
        oracle([unit for unit in range(oracle.width) if (index >> unit) & 1])
        for index in range(1 << oracle.width)
    ]


VALUES = {
    "accuracy": nr.Accuracy(),
    ("recall", 1): nr.Recall(1),
    "negative loss": nr.NegativeLoss(),
    "margin": nr.Margin(),
}


@pytest.mark.parametrize("removal", ["zero", "mean", "parameters"])
@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_every_coalition_of_every_network_removal_and_value(case, removal):
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers, removal)
        for name, value in VALUES.items():
            oracle.value = name
            observer = watch(case, removal=removal, value=value)
            found = measure(observer, layer)
            np.testing.assert_allclose(found.values, by_oracle(oracle), atol=1e-10)
            exact = nr.ExactShapley().score(observer, layer).ranking
            table = ValueTable(layer, torch.from_numpy(found.values), found.examples)
            torch.testing.assert_close(table.shapley(), exact.scores, atol=1e-12, rtol=0)


def test_accuracies_are_summed_without_rounding():
    for name in ("perceptron", "many ties in pictures", "lenet, flatten", "skip", "sigmoid"):
        case = named(name)
        for layer in case.reads:
            found = measure(watch(case), layer)
            counted = found.values * found.examples
            assert (counted == np.round(counted)).all()
            in_others = look(case.model(), case.batches(sizes=(2, 10)))
            np.testing.assert_array_equal(measure(in_others, layer).values, found.values)


@pytest.mark.parametrize("name", ["perceptron", "lenet, flatten", "skip"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_share_is_what_is_drawn_of_the_whole_table(name, share):
    case = named(name)
    for layer in case.reads:
        for value in (nr.Accuracy(), nr.NegativeLoss()):
            observer = watch(case, value=value)
            whole = measure(observer, layer)
            wanted = share_of_coalitions(7, 0, observer.width(layer), share)
            found = measure(observer, layer, wanted)
            expected = np.where(wanted, whole.values, np.nan)
            np.testing.assert_allclose(found.values, expected, atol=1e-12)
            active = torch.cat([game.active for game in observer.games(layer)]).sum(dim=1)
            lesser = torch.minimum(2**active, torch.tensor(int(wanted.sum())))
            assert found.coalitions == int(lesser.sum())
            assert whole.coalitions == int((2**active).sum())


def test_the_entry_point_measures_what_it_is_asked_for():
    case = named("lenet, flatten")
    whole = table_of(case, "conv2")
    assert (whole.layer, whole.units, whole.examples, whole.complete) == ("conv2", 4, 12, True)
    assert whole.provenance["way"] == "additive, compiled"
    assert whole.provenance["value"] == "Accuracy()"
    oracle = Oracle(case.model(), case.batches(), "conv2", ("fc1",), "mean", "margin")
    found = table_of(case, "conv2", value=nr.Margin(), removal="mean")
    np.testing.assert_allclose(found.values, by_oracle(oracle), atol=1e-10)
    part = table_of(case, "fc1", share=0.3, seed=5)
    np.testing.assert_array_equal(part.known, share_of_coalitions(5, 0, 5, 0.3))
    assert part.provenance["share"] == 0.3
    assert not part.complete


def test_the_model_comes_back_as_it_was():
    case = named("dropout")
    model = case.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    value_table(model, case.batches(), "fc0", progress=False)
    assert model.training
    assert all(torch.equal(before[name], it) for name, it in model.state_dict().items())


def test_values_by_units():
    table = ValueTable("fc", torch.arange(8.0), examples=3)
    for size in range(4):
        for units in combinations(range(3), size):
            assert table.value(units) == sum(2**unit for unit in units)
    assert table.value([2, 2, 0]) == 5
    for unit in (3, -1):
        with pytest.raises(UnitError, match=f"no unit {unit}"):
            table.value([unit])


def test_a_table_with_gaps_says_so():
    table = ValueTable("fc", torch.tensor([0, torch.nan, 1, 2]), examples=3)
    assert repr(table) == "ValueTable('fc': 3 of 4 coalitions of 2 units, 3 examples)"
    with pytest.raises(MethodError, match=r"value of \[0\] is not in the table.*share=None"):
        table.value([0])
    for index in (table.shapley, table.banzhaf, table.interactions):
        with pytest.raises(MethodError, match="need every coalition: 3 of 4 values are known"):
            index()
    with pytest.raises(MethodError, match=r"lets unit 0 of layer 'fc' join 0 others"):
        table.permutation_shapley(100)


def test_permutations_over_a_complete_table():
    table = ValueTable("fc", torch.from_numpy(np.random.default_rng(0).normal(size=32)), 10)
    found = table.permutation_shapley(300, seed=3, repetition=1)
    walked = walk(table.values.numpy(), 300, 3, 1)
    np.testing.assert_array_equal(found.scores, walked.mean)
    np.testing.assert_array_equal(found.stderr, np.sqrt(walked.variance))
    assert found.counts.tolist() == [3000] * 5
    gain = table.value(range(5)) - table.value([])
    assert float(found.scores.sum()) == pytest.approx(gain, abs=1e-12)
    many = table.permutation_shapley(20_000)
    assert ((many.scores - table.shapley()).abs() < 4 * many.stderr).all()


def test_permutations_over_a_table_with_gaps_are_unbiased_and_promise_no_error():
    rng = np.random.default_rng(1)
    whole = ValueTable("fc", torch.from_numpy(rng.normal(size=32).cumsum()), 10)
    means = []
    for draw in range(400):
        known = torch.from_numpy(share_of_coalitions(draw, 0, 5, 0.8))
        part = ValueTable("fc", whole.values.where(known, torch.nan), 10)
        try:
            found = part.permutation_shapley(200, seed=draw)
        except MethodError:  # a gap, as likely for one unit and size as for another
            continue
        assert part.complete or found.stderr.isnan().all()
        means.append(found.scores)
    scores = torch.stack(means)
    assert len(scores) > 200
    error = scores.std(dim=0) / len(scores) ** 0.5
    assert ((scores.mean(dim=0) - whole.shapley()).abs() < 4 * error).all()


def test_saved_and_loaded(tmp_path):
    for table in (table_of(named("perceptron"), "fc0"), table_of(named("skip"), "up", share=0.4)):
        path = tmp_path / "table.safetensors"
        table.save(path)
        assert ValueTable.load(path) == table
        assert ValueTable.load(path) != ValueTable(table.layer, table.values + 1, table.examples)
        blob = bytearray(path.read_bytes())
        blob[-5] ^= 1
        path.write_bytes(blob)
        with pytest.raises(FileError, match="SHA-256"):
            ValueTable.load(path)


@pytest.mark.parametrize("shape", [(3,), (1,), (0,), (2, 2)])
def test_a_table_has_a_value_for_each_coalition(shape):
    with pytest.raises(MethodError, match=r"one value for each of the 2\^units"):
        ValueTable("fc", torch.zeros(shape), 1)


def test_wide_and_expensive_layers_are_refused():
    wide = nn.Sequential(nn.Linear(3, 30), nn.Sigmoid(), nn.Linear(30, 3))
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(MethodError, match=r"'0' has 30 units.*2\^30.*PermutationShapley"):
        value_table(wide, batches, "0", progress=False)
    with pytest.raises(MethodError, match=r"'0' has 30 units.*PermutationShapley"):
        value_table(wide, batches, "0", share=0.1, progress=False)
    with pytest.raises(MethodError, match=r"value table of layer '0'.*max_operations=1e\+09"):
        value_table(wide, batches, "0", progress=False, max_units=30, max_operations=1e9)


def test_arguments_out_of_range_are_refused():
    case = named("perceptron")
    for share in (0, -0.5, 1.1, float("nan")):
        with pytest.raises(MethodError, match="share="):
            table_of(case, "fc0", share=share)
    with pytest.raises(MethodError, match="seed=-1"):
        table_of(case, "fc0", seed=-1)
    with pytest.raises(MethodError, match="value=3"):
        table_of(case, "fc0", value=3)
    with pytest.raises(UnitError, match="nonsense"):
        table_of(case, "nonsense")
    with pytest.raises(MethodError, match=r"Recall\(label=9\).*not one of the 12 examples"):
        table_of(case, "fc0", value=nr.Recall(9))
    table = table_of(case, "fc0")
    for permutations in (1, 0, 2.5, None):
        with pytest.raises(MethodError, match="permutations="):
            table.permutation_shapley(permutations)


def test_other_values_are_rounded_in_their_last_places_only():
    model = nn.Sequential(nn.Linear(4, 14), nn.Tanh(), nn.Linear(14, 3)).double()
    batches = [(torch.randn(3, 4).double() * 3, torch.tensor([0, 1, 2]))]
    observer = look(model, batches, value=nr.NegativeLoss())
    (game,) = observer.games("0")
    values = [torch.cat(list(game.power_set(row))) for row in range(3)]
    found = torch.from_numpy(measure(observer, "0").values)
    largest = max(float(one.abs().max()) for one in values)
    worst = float((found - sum(values) / 3).abs().max())
    assert worst < 8 * torch.finfo(torch.float64).eps * largest
