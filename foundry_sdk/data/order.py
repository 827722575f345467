"""The order of an epoch's samples, the same for any number of ranks, nodes and workers.

The order is that of ``streaming.StreamingDataset`` on one node. It is made whole first and dealt
out afterwards, so that no sample has to be repeated to make the ranks' shares equal.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FILLER = -1
"""Stands in a batch where there is no sample."""


def canonical_order(samples: int, canonical_nodes: int) -> NDArray[np.int64]:
    """Return positions of an epoch, taken from ``canonical_nodes`` stretches in turn.

    Every position comes once. A run on as many nodes (or a divisor) then reads on each node
    from its own stretches alone.

    Args:
        samples: of the epoch.
        canonical_nodes: number of stretches of equal length (or one less).

    Returns:
        int64 (samples,).
    """
    starts = np.arange(canonical_nodes + 1) * samples // canonical_nodes
    longest = int(np.diff(starts).max())
    table = starts[:-1, None] + np.arange(longest)
    order: NDArray[np.int64] = np.where(table < starts[1:, None], table, FILLER).T.ravel()
    kept: NDArray[np.int64] = order[order != FILLER].astype(np.int64)
    return kept


def into_batches(
    order: NDArray[np.int64], global_batch: int, *, drop_last: bool
) -> NDArray[np.int64]:
    """Cut an order into global batches; the tail is dropped or filled up.

    Returns:
        int64 (batches, global batch), ``FILLER`` where there is no sample.
    """
    if drop_last:
        return order[: len(order) // global_batch * global_batch].reshape(-1, global_batch)
    missing = -len(order) % global_batch
    filled = np.concatenate([order, np.full(missing, FILLER, np.int64)])
    return filled.reshape(-1, global_batch)


def share_of_rank(
    batches: NDArray[np.int64], *, rank: int, world_size: int, ranks_per_node: int
) -> NDArray[np.int64]:
    """Return one rank's rows: every node takes every n-th, every rank of a node every r-th of it.

    Args:
        batches: int64 (batches, global batch).
        rank: of ``world_size``, counted node by node.
        world_size: number of ranks; divides the global batch.
        ranks_per_node: divides ``world_size``.

    Returns:
        int64 (batches, global batch / world size).
    """
    nodes = world_size // ranks_per_node
    node, local_rank = divmod(rank, ranks_per_node)
    return np.ascontiguousarray(batches[:, node::nodes][:, local_rank::ranks_per_node])


def epoch_order(dataset: Any, epoch: int) -> NDArray[np.int64]:  # noqa: ANN401
    """Return the sample numbers of one epoch in order, each drawn from all streams at random.

    Args:
        dataset: a ``streaming.StreamingDataset``; its sampling and shuffling are used.
        epoch: which one; each has its own order if the dataset shuffles.

    Returns:
        int64 (samples of the epoch,).
    """
    from foundry_sdk.data.mds import import_streaming

    streaming = import_streaming()
    shuffle_units, samples = dataset.resample_streams(epoch)
    positions = canonical_order(len(samples), dataset.num_canonical_nodes)
    if dataset.shuffle:
        shuffled = streaming.base.shuffle.get_shuffle(
            dataset.shuffle_algo,
            shuffle_units,
            dataset.num_canonical_nodes,
            dataset.shuffle_seed,
            epoch,
            dataset.shuffle_block_size,
        )
        positions = shuffled[positions]
    order: NDArray[np.int64] = samples[positions]
    return order


def epoch_batches(
    dataset: Any,  # noqa: ANN401
    epoch: int,
    *,
    global_batch: int,
    drop_last: bool,
) -> NDArray[np.int64]:
    """Return the global batches of one epoch, by the dataset's batching method.

    ``random`` draws each batch from all streams as they come, ``stratified`` keeps the streams'
    proportions in each batch, ``per_stream`` takes each batch from one stream.

    Returns:
        int64 (batches, global batch), ``FILLER`` where there is no sample.
    """
    if dataset.batching_method == "random":
        return into_batches(epoch_order(dataset, epoch), global_batch, drop_last=drop_last)
    from foundry_sdk.data.mds import import_streaming

    streaming = import_streaming()
    alone = streaming.base.world.World(1, 1, 1, 0)
    of_rank, dataset.batch_size = dataset.batch_size, global_batch
    try:
        work = streaming.base.batching.generate_work(
            dataset.batching_method, dataset, alone, epoch, 0
        )
    finally:
        dataset.batch_size = of_rank
    batches: NDArray[np.int64] = work.reshape(-1, global_batch)
    is_sample = batches != FILLER
    kept: NDArray[np.int64] = batches[is_sample.all(axis=1) if drop_last else is_sample.any(axis=1)]
    return kept
