import pytest
import torch
from tests.cases import CASES, named, watch
from tests.condense.zoo import watched
from tests.oracles.game import Oracle

from neurank.errors import MethodError, UnitError
from neurank.observe.removal import check_removal, off_constants, off_values, unit_view
from neurank.units.space import Chain


def at_reads(observer, layer, removal):
    """What each read of a layer receives, entry by entry."""
    layers = (observer.space[layer],)
    return off_constants(removal, layers, observer.runner, observer.examples)[layer]


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


@pytest.mark.parametrize("removal", ["zero", "mean", "parameters"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reads_receive_what_the_one_stretch_of_a_layer_ends_in(case, removal):
    """Entry by entry where `off_values` says it unit by unit and place by place."""
    observer = watch(case)
    for layer in observer.space.hidden:
        if not isinstance(observer.space[layer], Chain):
            continue
        wanted = off(observer, layer, removal)
        reads = observer.space[layer].reads
        for read, found in zip(reads, at_reads(observer, layer, removal), strict=True):
            assert found.dtype == torch.float64
            is_flat = len(read.units) == wanted.numel()
            by_entry = wanted.flatten() if is_flat else wanted[:, 0]
            torch.testing.assert_close(found, by_entry, atol=1e-12, rtol=1e-12)


def test_a_layer_that_runs_more_than_once_has_one_mean():
    """Over all its runs, since its one bias makes up for each of them."""
    observer = watched("recursive")
    inputs = torch.cat([inputs for inputs, _ in observer.examples])
    seen = []
    handle = observer.model.again.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        observer.model(inputs)
    handle.remove()
    wanted = torch.cat(seen).mean((0, 2, 3))
    reads = observer.space["stem"].reads
    found = at_reads(observer, "stem", "mean")
    runs = [it for read, it in zip(reads, found, strict=True) if "conv2d" in read.operation]
    assert len(runs) == len(seen) == 3
    for each in runs:
        torch.testing.assert_close(each, wanted)


def test_each_channel_of_a_unit_has_a_mean_of_its_own():
    """A head's features are removed together, but are not alike."""
    observer = watched("vit-fused-attention")
    (found,) = at_reads(observer, "blocks.0.attn.qkv", "mean")
    assert observer.space["blocks.0.attn.qkv"].reads[0].units == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert len(found.unique()) == 12


def test_what_is_normalised_with_others_leaves_no_constant():
    observer = watched("vit-fused-attention")
    with pytest.raises(UnitError, match="its units are normalised together with others"):
        at_reads(observer, "patches", "parameters")


def test_rows_of_all_members_are_silent_where_parameters_are_removed():
    """Of a residual sum, BatchNorms' shifts are left: of the stem and the branch that is added."""
    observer = watched("resnet-basic")
    found = at_reads(observer, "stem.0", "parameters")

    def shift(name):
        norm = observer.model.get_submodule(name)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return (norm.bias - norm.running_mean * scale).detach()

    stem = shift("stem.1").relu()
    torch.testing.assert_close(found[0], stem)
    torch.testing.assert_close(found[1], (stem + shift("blocks.0.bn2")).relu())
