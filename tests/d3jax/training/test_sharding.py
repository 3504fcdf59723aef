"""Where the rows of a batch and the arrays of a state lie."""

import jax
import numpy as np
import pytest

from d3jax.errors import ConfigError
from d3jax.parameters import DATA_AXIS
from d3jax.training.sharding import check_batch_size, make_mesh, place_batch, replicate


def test_a_mesh_holds_all_devices_or_those_it_is_given():
    assert list(make_mesh().devices) == jax.devices()
    chosen = jax.devices()[2:5]
    mesh = make_mesh(chosen)
    assert list(mesh.devices) == chosen
    assert mesh.axis_names == (DATA_AXIS,)


def test_rows_are_shared_in_order_and_none_is_copied(batch):
    mesh = make_mesh(jax.devices()[:4])
    placed = place_batch(mesh, batch)
    for ours, theirs in zip(placed, batch, strict=True):
        assert ours.dtype == theirs.dtype
        for shard in ours.addressable_shards:
            place = mesh.devices.tolist().index(shard.device)
            np.testing.assert_array_equal(shard.data, theirs[16 * place : 16 * (place + 1)])
        assert len(ours.addressable_shards) == 4


def test_replicas_are_whole_on_every_device():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    shards = replicate(make_mesh(), {"kernel": array})["kernel"].addressable_shards
    assert {shard.device for shard in shards} == set(jax.devices())
    for shard in shards:
        np.testing.assert_array_equal(shard.data, array)


@pytest.mark.parametrize("batch_size", [3, 4, 4098])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(batch_size):
    mesh = make_mesh()
    check_batch_size(8 * batch_size, mesh)
    message = (
        f"^batch_size is {batch_size}, which 8 devices can't share evenly; use a multiple of 8$"
    )
    with pytest.raises(ConfigError, match=message):
        check_batch_size(batch_size, mesh)


def test_a_share_that_cannot_be_cut_into_slices_is_refused():
    check_batch_size(48, make_mesh(), slices=3)
    message = (
        r"^a device's 6 rows of a batch can't be cut into 4 equal slices; use a batch_size that "
        r"is a multiple of 32$"
    )
    with pytest.raises(ConfigError, match=message):
        check_batch_size(48, make_mesh(), slices=4)
