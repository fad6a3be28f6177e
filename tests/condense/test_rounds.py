import pytest
import torch
from torch import nn

import neurank as nr
from neurank.condense.rounds import plan_in_rounds
from neurank.errors import PlanError


@pytest.fixture(scope="module")
def twins():
    """Units 0 and 1 of a layer do the same and share the work; unit 2 does little, unit 3 less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1]]))
        model[0].bias.fill_(3)
        model[2].weight.copy_(torch.tensor([[2.0, 2, 1.5, 1e-3], [-2, -2, -1.5, 0]]))
        model[2].bias.zero_()
    data = [(torch.randn(60, 2, dtype=torch.float64), torch.arange(60) % 2)]
    return model, data


def test_one_round_is_ranking_and_planning(twins):
    model, data = twins
    ranking = nr.rank(model, data, nr.Taylor(), removal="mean", progress=False)
    once = plan_in_rounds(model, data, nr.Taylor(), ratio=0.5, rounds=1, progress=False)
    assert once == nr.plan(ranking, ratio=0.5)


@pytest.mark.parametrize("rounds", [2, 3, 7])
def test_rounds_end_at_the_same_widths(digits, rounds):
    model = nr.zoo.digits_net(4, 6, 8, 5, seed=0)
    data = digits.validation.first(50)
    shares = {"conv2": 0.5, "fc1": 0.9}
    made = plan_in_rounds(
        model, data, nr.WeightNorm(), ratio=shares, rounds=rounds, layers=list(shares),
        progress=False,
    )  # fmt: skip
    assert dict(made.widths_after) == {"conv2": 3, "fc1": 1}
    assert dict(made.widths) == {"conv2": 6, "fc1": 8}


def test_scores_are_taken_anew_in_the_network_that_is_left(twins):
    """Ranked by Shapley-like worth once, both twins look half as good; in rounds one is kept."""
    model, data = twins
    in_rounds = plan_in_rounds(
        model, data, nr.MeanReplacementPenalty(at="post"), ratio=0.5, rounds=2, progress=False
    )
    first = nr.plan(
        nr.rank(model, data, nr.MeanReplacementPenalty(at="post"), progress=False),
        keep={"0": 3},
    )
    left = nr.condense(model, first, data, removal="mean", progress=False).model
    again = nr.rank(left, data, nr.MeanReplacementPenalty(at="post"), progress=False)
    assert in_rounds == first.then(nr.plan(again, keep={"0": 2}))


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True])
def test_a_wrong_number_of_rounds_is_refused(twins, rounds):
    with pytest.raises(PlanError, match="rounds="):
        plan_in_rounds(*twins, nr.Taylor(), ratio=0.5, rounds=rounds, progress=False)
