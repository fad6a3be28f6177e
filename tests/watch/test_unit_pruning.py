"""Units go on a schedule, and training goes on as a loop by hand would."""

import pytest
import torch
from tests.watch.nets import DATA, epoch_of, network, same, state_of

from neurank.condense.carry import carry_over
from neurank.condense.condensed import condense
from neurank.condense.plan import plan
from neurank.errors import CondenseError, FileError, MethodError
from neurank.rankers.random_score import RandomScore
from neurank.rankers.rank import rank
from neurank.rankers.weight_norm import WeightNorm
from neurank.watch.losses import mean_loss
from neurank.watch.unit_pruning import UnitPruning

SHARES = {1: 0.2, 3: 0.5}


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def pruning(shares=None, **settings):
    wanted = {"method": WeightNorm(), "data": DATA} | settings
    return UnitPruning(shares or SHARES, **wanted)


def trained(watched, model, optimizer, epochs):
    for epoch in epochs:
        epoch_of(model, optimizer)
        model = watched.after_epoch(epoch, model, optimizer)
    return model


def by_hand(widths):
    """The same training as a plain loop; `widths` are those after epochs 1 and 3."""
    model, losses = network(), []
    optimizer = adam(model)
    for epoch in range(1, 5):
        epoch_of(model, optimizer)
        if epoch in widths:
            losses.append(mean_loss(model, DATA))
            for target in widths[epoch]:
                ranking = rank(model, DATA, WeightNorm(), removal="mean", progress=False)
                made = plan(ranking, keep=target)
                small = condense(model, made, DATA, removal="mean", progress=False)
                carry_over(optimizer, model, small.model, small.cuts)
                model = small.model
            losses.append(mean_loss(model, DATA))
    return model, optimizer, losses


def test_training_goes_on_as_in_a_loop_by_hand():
    watched, model = pruning(), network()
    before, optimizer = model, adam(model)
    model = trained(watched, model, optimizer, range(1, 5))
    wanted = {1: [{"conv": 5, "fc1": 8}], 3: [{"conv": 3, "fc1": 5}]}
    twin, twins, losses = by_hand(wanted)
    assert same(state_of(model), state_of(twin))
    assert len(before.fc1.weight) == 10
    for mine, other in zip(optimizer.state.values(), twins.state.values(), strict=True):
        assert torch.equal(mine["exp_avg_sq"], other["exp_avg_sq"])
        assert float(mine["step"]) == 16
    done = [it.pruned for it in watched.epochs if it.pruned is not None]
    assert [loss for it in done for loss in it.losses] == losses
    assert [it.widths for it in done] == [
        {"conv": (6, 5), "fc1": (10, 8)},
        {"conv": (5, 3), "fc1": (8, 5)},
    ]
    assert done[1].parameters == tuple(
        sum(it.numel() for it in net.parameters()) for net in (by_hand({1: wanted[1]})[0], model)
    )
    assert [it.epoch for it in watched.epochs] == [1, 2, 3, 4]
    assert watched.epochs[3].parameters == done[1].parameters[1]
    assert all(it.seconds > 0 for it in watched.epochs)
    assert set(done[1].carried[0].parameters) == {name for name, _ in model.named_parameters()}


def test_the_whole_plan_names_original_units():
    watched, model = pruning(removal="zero"), network()
    whole, optimizer = state_of(model), torch.optim.SGD(model.parameters(), lr=0.0)
    model = trained(watched, model, optimizer, range(1, 4))
    assert dict(watched.plan.widths) == {"conv": 6, "fc1": 10}
    kept = list(watched.plan.keep["fc1"])
    assert torch.equal(model.fc2.weight, whole["fc2.weight"][:, kept])
    assert watched.plan == watched.epochs[-1].pruned.whole


def test_shares_of_what_is_left():
    watched, model = pruning({1: 0.5, 2: 0.5}, counted_from="current"), network()
    trained(watched, model, adam(model), (1, 2))
    assert dict(watched.plan.widths_after) == {"conv": 2, "fc1": 3}


def test_rounds_rank_what_is_left_anew():
    watched, model = pruning(rounds=3), network()
    model = trained(watched, model, adam(model), range(1, 5))
    twin, _, _ = by_hand(
        {
            1: [{"conv": 6, "fc1": 9}, {"conv": 5, "fc1": 8}],
            3: [{"conv": 5, "fc1": 7}, {"conv": 4, "fc1": 6}, {"conv": 3, "fc1": 5}],
        }
    )
    assert same(state_of(model), state_of(twin))
    # in the first round of epoch 1 nothing goes
    assert [len(it.pruned.plans) for it in watched.epochs if it.pruned] == [2, 3]


@pytest.mark.parametrize(
    ("shares", "settings"),
    [({1: 0.5}, {"layers": ["fc1"]}), ({1: {"fc1": 0.5}}, {}), ({1: {"fc1": 0.5, "conv": 0}}, {})],
)
def test_layers_that_are_not_named_stay_whole(shares, settings):
    watched, model = pruning(shares, **settings), network()
    model = trained(watched, model, adam(model), (1,))
    assert (len(model.conv.weight), len(model.fc1.weight)) == (6, 5)


def test_removal_and_seed_reach_ranking_and_condensing():
    watched, model = pruning({1: 0.5}, method=RandomScore(), seed=3, removal="zero"), network()
    optimizer = adam(model)
    epoch_of(model, optimizer)
    made = plan(rank(model, DATA, RandomScore(), seed=3, progress=False), ratio=0.5)
    twin = condense(model, made, DATA, progress=False).model
    model = watched.after_epoch(1, model, optimizer)
    assert same(state_of(model), state_of(twin))
    assert watched.plan.source["removal"] == "zero"


def test_nothing_is_due_and_nothing_changes():
    watched, model = pruning({5: 0.5}), network()
    before = state_of(model)
    assert watched.after_epoch(4, model, adam(model)) is model
    assert same(state_of(model), before)
    assert watched.plan is None
    assert watched.epochs[0].pruned is None
    # a share that comes to no unit
    watched, optimizer = pruning({1: 0.05}), adam(model)
    assert watched.after_epoch(1, model, optimizer) is model
    assert watched.epochs[0].pruned.plans == ()
    assert watched.epochs[0].pruned.losses[0] == watched.epochs[0].pruned.losses[1]


def test_several_optimizers_go_on():
    model = network()
    optimizers = [
        adam(model.conv),
        torch.optim.SGD(model.fc1.parameters(), lr=0.1),
        adam(model.fc2),
    ]
    small = pruning({1: 0.5}).after_epoch(1, model, optimizers)
    held = [it for one in optimizers for group in one.param_groups for it in group["params"]]
    wanted = [*small.conv.parameters(), *small.fc1.parameters(), *small.fc2.parameters()]
    assert all(one is other for one, other in zip(held, wanted, strict=True))


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("in_file", [True, False])
def test_an_interrupted_training_goes_on(tmp_path, last, in_file):
    watched, model = pruning(), network()
    whole = trained(watched, model, adam(model), range(1, 5))

    first, model = pruning(), network()
    optimizer = adam(model)
    model = trained(first, model, optimizer, range(1, last + 1))
    saved = tmp_path / "pruning.safetensors" if in_file else first.state_dict()
    if in_file:
        first.save(saved)

    second, again = pruning(), network()
    again = second.repeat(again, saved)
    again.load_state_dict(model.state_dict())
    optimizer_again = adam(again)
    optimizer_again.load_state_dict(optimizer.state_dict())
    assert second.epochs == first.epochs
    again = trained(second, again, optimizer_again, range(last + 1, 5))
    assert same(state_of(again), state_of(whole))
    assert second.plan == watched.plan
    assert [it.pruned for it in second.epochs] == [it.pruned for it in watched.epochs]


def test_only_the_same_schedule_is_repeated(tmp_path):
    first, model = pruning(), network()
    trained(first, model, adam(model), (1,))
    state = first.state_dict()
    with pytest.raises(MethodError, match="1 epochs are done with this schedule already"):
        first.repeat(network(), state)
    with pytest.raises(MethodError, match=r"shares is \[\[1, 0.3\]\] here and was \[\[1, 0.2\]\]"):
        pruning({1: 0.3}).repeat(network(), state)
    with pytest.raises(MethodError, match="removal is 'zero' here and was 'mean'"):
        pruning(removal="zero").repeat(network(), state)
    later = pruning({1: 0.2, 7: 0.9})  # what is to come may differ
    assert len(later.repeat(network(), state).fc1.weight) == 8
    with pytest.raises(FileError, match="no record of a UnitPruning"):
        pruning().repeat(network(), {"epochs": [{"epoch": 1}]})
    with pytest.raises(FileError):
        pruning().repeat(network(), tmp_path / "nothing.safetensors")


def test_to_frame():
    watched, model = pruning(), network()
    trained(watched, model, adam(model), (1, 2))
    frame = watched.to_frame()
    assert list(frame["epoch"]) == [1, 2]
    assert frame["loss after"].isna().tolist() == [False, True]
    assert frame.loc[0, "fc1"] == 8


def test_bad_calls_are_refused():
    watched, model = pruning(), network()
    optimizer = adam(model)
    small = watched.after_epoch(1, model, optimizer)
    with pytest.raises(MethodError, match="epoch 1 comes after epoch 1"):
        watched.after_epoch(1, small, optimizer)
    with pytest.raises(CondenseError, match="give the network that after_epoch returned"):
        watched.after_epoch(3, model, adam(model))
    with pytest.raises(CondenseError, match="holds no parameter of the large network"):
        pruning().after_epoch(1, network(), adam(network()))
    with pytest.raises(MethodError, match="rounds=0"):
        pruning(rounds=0)
    with pytest.raises(MethodError, match="removal='none' is unknown"):
        pruning(removal="none")
