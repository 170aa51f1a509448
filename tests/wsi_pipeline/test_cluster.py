"""Shards: disjoint, covering, balanced; job arrays of four schedulers; Dask."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.cluster import Shard, map_tasks, parse_shard, select_shard
from wsi_pipeline.errors import ConfigError, StageError

weights = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.integers(0, 1000), max_size=30
)


@given(weights=weights, count=st.integers(1, 9))
def test_shards_are_disjoint_and_cover_everything(weights, count):
    parts = [select_shard(weights, Shard(i, count)) for i in range(count)]
    assert sorted(key for part in parts for key in part) == sorted(weights)


@given(weights=weights, count=st.integers(1, 9))
def test_no_shard_is_heavier_than_the_fair_share_and_one_slide(weights, count):
    parts = [select_shard(weights, Shard(i, count)) for i in range(count)]
    heaviest = max(sum(weights[key] for key in part) for part in parts)
    assert heaviest <= sum(weights.values()) / count + max(weights.values(), default=0)


def test_slides_without_a_size_are_spread_by_number():
    parts = [select_shard(dict.fromkeys("abcdef", 0), Shard(i, 3)) for i in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        pytest.param(
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_COUNT": "8",
            },
            Shard(3, 8),
            id="slurm-as-the-contract-names-it",
        ),
        pytest.param(
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "13",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            Shard(2, 4),
            id="slurm-with-steps",
        ),
        pytest.param(
            {
                "SGE_TASK_ID": "2",
                "SGE_TASK_FIRST": "1",
                "SGE_TASK_LAST": "5",
                "SGE_TASK_STEPSIZE": "1",
            },
            Shard(1, 5),
            id="grid-engine",
        ),
        pytest.param({"LSB_JOBINDEX": "4", "LSB_JOBINDEX_END": "4"}, Shard(3, 4), id="lsf"),
    ],
)
def test_auto_reads_the_place_in_the_array(environ, shard):
    assert parse_shard("auto", environ) == shard


@pytest.mark.parametrize("first", [0, 1])
def test_pbs_needs_the_size_and_covers_every_shard(first):
    found = {
        parse_shard("auto/4", {"PBS_ARRAY_INDEX": str(i)}).index for i in range(first, first + 4)
    }
    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        pytest.param("auto", {}, "not in a job array", id="outside"),
        pytest.param("auto", {"SGE_TASK_ID": "undefined"}, "not in a job array", id="sge-outside"),
        pytest.param("auto", {"LSB_JOBINDEX": "0"}, "not in a job array", id="lsf-outside"),
        pytest.param("auto", {"PBS_ARRAY_INDEX": "3"}, "auto/N", id="pbs-without-size"),
        pytest.param(
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_COUNT": "2",
            },
            "has gaps",
            id="slurm-rerun-of-two-failed-tasks",
        ),
        pytest.param("3/3", {}, "0 to 2", id="index-too-large"),
        pytest.param("x", {}, "none of I/N", id="nonsense"),
    ],
)
def test_a_wrong_shard_is_refused(text, environ, said):
    with pytest.raises(ConfigError, match=said):
        parse_shard(text, environ)


def double(number: int) -> int:
    return 2 * number


def test_tasks_run_here_in_order():
    assert list(map_tasks(double, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]


def test_a_scheduler_that_is_not_there_is_named():
    with pytest.raises(StageError, match=r"tcp://127\.0\.0\.1:9"):
        list(map_tasks(double, [1, 2], dask="tcp://127.0.0.1:9"))


@pytest.mark.slow
def test_dask_leaves_the_environment_as_it_was(monkeypatch):
    """Its nannies set OMP_NUM_THREADS=1; torch, imported later, then used one core only."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    results = list(map_tasks(double, [1, 2, 3], workers=2))
    assert sorted(results) == [(0, 2), (1, 4), (2, 6)]
    assert dict(os.environ) == before


@pytest.mark.parametrize(("tasks", "started"), [(4, 4), (9, 8), (1, 0), (0, 0)])
def test_no_more_workers_start_than_there_are_tasks(monkeypatch, tasks, started):
    """`--workers 8` started eight processes for four slides."""
    seen = []

    class Cluster:
        def __init__(self, *, n_workers, **options):
            seen.append(n_workers)
            raise KeyboardInterrupt

    monkeypatch.setattr("distributed.LocalCluster", Cluster)
    with contextlib.suppress(KeyboardInterrupt):
        results = list(map_tasks(double, list(range(tasks)), workers=8))
        assert [value for _, value in results] == [2 * n for n in range(tasks)]
    assert seen == ([started] if started else [])


def test_a_cluster_is_not_started_for_nothing(monkeypatch):
    monkeypatch.setattr("distributed.LocalCluster", None)
    assert list(map_tasks(double, [], workers=8, dask="local")) == []
