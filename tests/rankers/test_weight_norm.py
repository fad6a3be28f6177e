import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, named, watch

import neurank as nr
from neurank.errors import MethodError


@pytest.mark.parametrize("case", CASES[::4], ids=str)
@settings(deadline=None, max_examples=5)
@given(p=st.sampled_from([0.5, 1, 1.5, 2, 3, math.inf]))
def test_matches_its_formula_unit_by_unit(case, p):
    model = case.model()
    for layer in case.reads:
        found = nr.WeightNorm(p).score(watch(case), layer).ranking
        wanted = []
        for unit in model.get_submodule(layer).weight.detach():
            sizes = unit.abs().flatten().tolist()
            root = max(sizes) if p == math.inf else sum(size**p for size in sizes) ** (1 / p)
            wanted.append(root)
        assert found.scores.tolist() == pytest.approx(wanted, rel=1e-12)
        assert (found.status, found.stderr_of) == ("computed", "none")
        assert found.stderr.isnan().all()
        assert (found.counts == 0).all()


def test_half_precision_is_summed_in_double():
    model = torch.nn.Sequential(torch.nn.Linear(3000, 2), torch.nn.Linear(2, 2)).bfloat16()
    with torch.no_grad():
        model[0].weight.fill_(0.125)
    data = [(torch.zeros(2, 3000, dtype=torch.bfloat16), torch.tensor([0, 1]))]
    ranking = nr.rank(model, data, nr.WeightNorm(1), layers=["0"], progress=False)
    assert ranking["0"].scores.tolist() == [375.0, 375.0]


@pytest.mark.parametrize("p", [0, -1, math.nan])
def test_p_must_be_positive(p):
    with pytest.raises(MethodError, match="a norm needs a positive p"):
        nr.WeightNorm(p)


def test_the_data_do_not_matter():
    case = named("perceptron")
    one = nr.rank(case.model(), case.batches(), nr.WeightNorm(), progress=False)
    other = nr.rank(case.model(), case.batches()[:1], nr.WeightNorm(), progress=False)
    assert one.layers == other.layers
