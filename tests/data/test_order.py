import numpy as np
import pytest

from foundry_sdk.data.order import canonical_order, into_batches, share_of_rank


@pytest.mark.parametrize("samples", [1, 7, 10, 64, 101])
@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_every_sample_comes_once(samples, nodes):
    assert sorted(canonical_order(samples, nodes)) == list(range(samples))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_order_is_that_of_streaming_where_it_repeats_nothing(nodes):
    from foundry_sdk.data.mds import import_streaming

    partitions = import_streaming().base.partition.get_partitions("orig", 48, nodes, 1, 1, 1, 4)
    assert canonical_order(48, nodes).tolist() == partitions.ravel().tolist()


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_each_rank_has_the_samples_that_streaming_gives_it(nodes, ranks):
    from foundry_sdk.data.mds import import_streaming

    get_partitions = import_streaming().base.partition.get_partitions
    theirs = get_partitions("orig", 64, 4, nodes, ranks, 1, 16 // nodes // ranks)
    batches = into_batches(canonical_order(64, 4), 16, drop_last=True)
    for rank in range(nodes * ranks):
        share = share_of_rank(batches, rank=rank, world_size=nodes * ranks, ranks_per_node=ranks)
        node, local_rank = divmod(rank, ranks)
        assert share.tolist() == theirs[node, local_rank, 0].tolist()


def test_the_tail_is_dropped_or_filled():
    order = np.arange(10)
    assert into_batches(order, 4, drop_last=True).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert into_batches(order, 4, drop_last=False)[-1].tolist() == [8, 9, -1, -1]


@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (2, 2), (2, 1), (6, 3), (6, 2)])
def test_ranks_share_each_batch_without_overlap(world, per_node):
    batches = into_batches(np.arange(60), 12, drop_last=True)
    shares = [
        share_of_rank(batches, rank=rank, world_size=world, ranks_per_node=per_node)
        for rank in range(world)
    ]
    together = np.concatenate(shares, axis=1)
    assert np.sort(together, axis=1).tolist() == batches.tolist()
