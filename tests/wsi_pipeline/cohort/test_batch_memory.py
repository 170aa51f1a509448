"""Memory of batches is used again, and never while a tensor refers to it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.cohort.batch_memory import BatchMemory


def test_memory_of_a_batch_that_is_gone_is_used_again():
    memory = BatchMemory()
    batch = memory.take((4, 8, 8, 3))
    place = batch.data_ptr()
    del batch
    assert memory.take((3, 8, 8, 3)).data_ptr() == place


def test_memory_that_a_part_of_a_batch_refers_to_is_not_used_again():
    memory = BatchMemory()
    batch = memory.take((4, 8, 8, 3))
    batch.fill_(7)
    part = batch[2:].permute(0, 3, 1, 2)
    del batch
    memory.take((4, 8, 8, 3)).fill_(0)
    assert (part == 7).all()


def test_no_more_is_spared_than_was_set():
    memory = BatchMemory(most_spare_bytes=1000)
    batches = [memory.take((400,)) for _ in range(5)]
    del batches
    assert sum(spare.nbytes for spare in memory._spare) <= 1000


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_batches_that_live_at_once_share_nothing(sizes):
    memory = BatchMemory()
    for _ in range(2):
        batches = [memory.take((size,)).fill_(n) for n, size in enumerate(sizes)]
        for n, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            assert torch.equal(batch, torch.full((size,), n, dtype=torch.uint8))
        del batches, batch
