import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.cases import CASES
from torch import nn

import neurank as nr


def emptied(weight, share, seed):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight[torch.rand(weight.shape, generator=draw) < share] = 0


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_counts_rows_and_what_reads_them(case):
    model = case.model()
    for place, name in enumerate(case.reads):
        emptied(model.get_submodule(name).weight, 0.6, place)
    ranking = nr.rank(model, case.batches(), nr.NonzeroWeights(), progress=False)
    for layer in ranking:
        readers = case.reads.get(layer, ())
        if not readers:
            continue
        own = model.get_submodule(layer).weight
        for unit, score in enumerate(ranking[layer].scores.tolist()):
            incoming = own[unit].ne(0).double().mean()
            columns = [
                reader.weight.reshape(len(reader.weight), len(own), -1)[:, unit].flatten()
                for reader in map(model.get_submodule, readers)
            ]
            outgoing = torch.cat(columns).ne(0).double().mean()
            assert score == pytest.approx(float(min(incoming, outgoing)))


def test_removing_what_is_empty_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(5 * 16, 4),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0  # they give constants
        model[2].weight[:, 3] = 0  # nobody reads it
        model[2].weight[2] = 0
    data = [(torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.arange(7) % 4)]
    ranking = nr.rank(model, data, nr.NonzeroWeights(), progress=False)
    plan = nr.plan(ranking, above=0)
    assert dict(plan.keep) == {"0": (0, 2, 5), "2": (0, 1, 3, 4)}
    small = nr.condense(model, plan, data, removal="mean", progress=False).model
    torch.testing.assert_close(small(data[0][0]), model(data[0][0]), rtol=1e-12, atol=1e-12)


LABELLED = [one for one in ARCHITECTURES if one.classes is not None]


@pytest.mark.parametrize("one", LABELLED[::6], ids=lambda one: one.name)
def test_full_networks_have_all_their_weights(one):
    ranking = nr.rank(one.model(), one.batches(), nr.NonzeroWeights(), progress=False)
    for layer in ranking:
        assert (ranking[layer].scores == 1).all()


def test_units_read_by_more_than_weights_are_judged_by_what_comes_in():
    norm = nn.LayerNorm(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), norm, nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight[1, :2] = 0
        model[3].weight[:, 2] = 0
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3)]
    scores = nr.rank(model, data, nr.NonzeroWeights(), progress=False)["0"].scores
    assert scores.tolist() == pytest.approx([1, 1 / 3, 1, 1])
