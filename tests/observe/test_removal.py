import pytest
import torch
from tests.cases import CASES, named, watch
from tests.oracles.game import Oracle

from neurank.errors import MethodError
from neurank.observe.removal import check_removal, off_values, unit_view


def off(observer, layer, removal):
    return off_values(removal, observer.space[layer], observer.runner, observer.examples)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_is_zero_and_mean_the_mean_over_examples_and_positions(case):
    observer = watch(case)
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers, "mean")
        zero, mean = (off(observer, layer, removal) for removal in ("zero", "mean"))
        assert (zero == 0).all()
        assert mean.shape == zero.shape
        wanted = oracle.means[:, None].expand_as(mean)
        torch.testing.assert_close(mean, wanted, atol=1e-12, rtol=1e-12)


def test_parameters_let_what_follows_the_unit_live_on():
    """A BatchNorm's shift, an activation with f(0) not 0; nothing behind a plain ReLU."""
    norm = watch(named("norm before the activation"))
    batch_norm = named("norm before the activation").model().middle[0]
    shift = batch_norm.bias - batch_norm.weight * batch_norm.running_mean / torch.sqrt(
        batch_norm.running_var + batch_norm.eps
    )
    found = off(norm, "conv1", "parameters")
    wanted = shift.detach().relu()[:, None].expand_as(found)
    torch.testing.assert_close(found, wanted)
    assert (found > 0).any()
    assert (off(watch(named("sigmoid")), "fc0", "parameters") == 0.5).all()
    assert (off(watch(named("lenet, flatten")), "conv1", "parameters") == 0).all()


def test_single_precision_stays_single():
    case = named("linear pair")
    for removal in ("zero", "mean", "parameters"):
        assert off(watch(case, torch.float32), "fc0", removal).dtype == torch.float32


def test_maps_and_flattened_maps_look_the_same():
    maps = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    assert torch.equal(unit_view(maps, 3), unit_view(maps.flatten(1), 3))
    assert unit_view(maps, 3).shape == (2, 3, 4)
    assert unit_view(maps[:0], 3).shape == (0, 3, 4)
    assert unit_view(torch.zeros(5, 3), 3).shape == (5, 3, 1)


@pytest.mark.parametrize("removal", ["Zero", "none", "", None, 0])
def test_unknown_removals_are_refused(removal):
    with pytest.raises(MethodError, match=r"is unknown: it is one of 'zero', 'mean', 'parameters'"):
        check_removal(removal)
