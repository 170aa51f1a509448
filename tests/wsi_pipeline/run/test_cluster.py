"""Shards: disjoint, covering, balanced; job arrays of four schedulers; tasks in this process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.run.shards import Shard, parse_shard, select_shard

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


def test_the_balance_is_that_of_weights_not_of_numbers():
    """Ten small slides weigh as much as the large one."""
    weights = {"large": 1000, **{f"small{i}": 100 for i in range(10)}}
    parts = [select_shard(weights, Shard(i, 2)) for i in range(2)]
    assert sorted(len(part) for part in parts) == [1, 10]


def slurm(*ids: int, step: int = 1) -> list[dict[str, str]]:
    """The variables of each task of an array; see sbatch(1)."""
    shared = {
        "SLURM_ARRAY_TASK_MIN": str(min(ids)),
        "SLURM_ARRAY_TASK_MAX": str(max(ids)),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(len(ids)),
    }
    return [{"SLURM_ARRAY_TASK_ID": str(i), **shared} for i in ids]


def grid_engine(first: int, last: int, step: int = 1) -> list[dict[str, str]]:
    shared = {
        "SGE_TASK_FIRST": str(first),
        "SGE_TASK_LAST": str(last),
        "SGE_TASK_STEPSIZE": str(step),
    }
    return [{"SGE_TASK_ID": str(i), **shared} for i in range(first, last + 1, step)]


def lsf(first: int, last: int, step: int = 1) -> list[dict[str, str]]:
    shared = {"LSB_JOBINDEX_END": str(last), "LSB_JOBINDEX_STEP": str(step)}
    return [{"LSB_JOBINDEX": str(i), **shared} for i in range(first, last + 1, step)]


def pbs(first: int, last: int, step: int = 1) -> list[dict[str, str]]:
    return [{"PBS_ARRAY_INDEX": str(i)} for i in range(first, last + 1, step)]


def test_auto_reads_the_place_of_slurm_as_its_manual_names_it():
    environ = {
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_COUNT": "8",
    }
    assert parse_shard("auto", environ) == Shard(3, 8)


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("auto", slurm(*range(8))),
        ("auto", slurm(*range(1, 9))),
        ("auto", slurm(*range(0, 15, 2), step=2)),
        ("auto/8", slurm(*range(0, 15, 2), step=2)),
        ("auto/8", slurm(*range(1, 9))),
        ("auto/8", slurm(*range(100, 108))),
        ("auto/0-14:2", slurm(*range(0, 15, 2), step=2)),
        ("auto", grid_engine(1, 5)),
        ("auto", grid_engine(2, 10, 2)),
        ("auto/5", grid_engine(2, 10, 2)),
        ("auto/5", grid_engine(1, 10, 2)),
        ("auto", lsf(1, 4)),
        ("auto", lsf(1, 9, 2)),
        ("auto/5", lsf(1, 9, 2)),
        ("auto/5", lsf(2, 10, 2)),
        ("auto/5", lsf(1, 10, 2)),
        ("auto/10", lsf(101, 110)),
        ("auto/4", pbs(0, 3)),
        ("auto/4", pbs(1, 4)),
        ("auto/0-6:2", pbs(0, 6, 2)),
        ("auto/101-104", pbs(101, 104)),
    ],
    ids=str,
)
def test_the_tasks_of_an_array_have_every_shard_once(text, tasks):
    """Of an array with a step, auto/N took half of the shards twice and the others never."""
    found = [parse_shard(text, environ) for environ in tasks]
    assert {shard.count for shard in found} == {len(tasks)}
    assert sorted(shard.index for shard in found) == list(range(len(tasks)))


@given(
    first=st.integers(0, 200), n=st.integers(1, 12), step=st.integers(1, 5), extra=st.integers(0, 4)
)
def test_whatever_a_range_is_its_tasks_have_every_shard_once(first, n, step, extra):
    last = first + step * (n - 1)
    stated = f"auto/{first}-{last + min(extra, step - 1)}:{step}"
    ranges = {
        stated: pbs(first, last, step),
        "auto": slurm(*range(first, last + 1, step), step=step),
    }
    if first >= 1:
        ranges[f"auto/{n}"] = lsf(first, last, step)
    for text, tasks in ranges.items():
        assert [parse_shard(text, t) for t in tasks] == [Shard(i, n) for i in range(n)], text


@given(ids=st.sets(st.integers(0, 12), min_size=1, max_size=8), n=st.integers(1, 14))
def test_the_tasks_of_a_list_never_leave_a_shard_out_in_silence(ids, n):
    """Either the tasks have every shard, or some of them is refused."""
    for text in ("auto", f"auto/{n}"):
        try:
            found = [parse_shard(text, environ) for environ in slurm(*ids)]
        except ConfigError:
            continue
        assert len({shard.index for shard in found}) == len(ids)
        [count] = {shard.count for shard in found}
        assert count == len(ids)


def test_some_tasks_of_an_array_that_run_again_are_those_of_the_whole():
    again = slurm(3, 7)
    assert [parse_shard("auto/0-15", t) for t in again] == [Shard(3, 16), Shard(7, 16)]
    assert [parse_shard("auto/1-16", t) for t in again] == [Shard(2, 16), Shard(6, 16)]


def test_assumptions_are_reported(caplog):
    parse_shard("auto", lsf(1, 4)[2])
    assert "LSF does not set an array's first index; assuming 1-4" in caplog.text
    caplog.clear()
    parse_shard("auto/4", pbs(0, 3)[1])
    assert "PBS sets neither the first index nor the step" in caplog.text


@pytest.mark.parametrize(
    ("text", "tasks", "message"),
    [
        pytest.param("auto", [{}], "not in a job array", id="outside"),
        pytest.param(
            "auto", [{"SGE_TASK_ID": "undefined"}], "not in a job array", id="sge-outside"
        ),
        pytest.param("auto", [{"LSB_JOBINDEX": "0"}], "not in a job array", id="lsf-outside"),
        pytest.param("auto", pbs(0, 3), "auto/N", id="pbs-without-size"),
        pytest.param("auto/4", pbs(5, 8), "consecutive", id="pbs-with-another-first-index"),
        pytest.param("auto", slurm(3, 7), "has gaps", id="slurm-rerun-of-two-failed-tasks"),
        pytest.param("auto", slurm(0, 2, 5), "has gaps", id="slurm-list"),
        pytest.param("auto/3", slurm(0, 2, 5), "has gaps", id="slurm-list-with-its-size"),
        pytest.param("auto/15", slurm(*range(0, 15, 2), step=2), "8 tasks, not 15", id="not-n"),
        pytest.param("auto/2", slurm(*range(4)), "4 tasks, not 2", id="more-tasks-than-shards"),
        pytest.param("auto/16", slurm(3, 7), "2 tasks, not 16", id="part-of-an-unknown-array"),
        pytest.param("auto/16", grid_engine(3, 3), "1 task, not 16", id="part-of-a-sge-array"),
        pytest.param("auto/16", lsf(3, 3), "does not set", id="part-of-an-lsf-array"),
        pytest.param("auto", lsf(2, 10, 2), "not one of 1-10:2", id="lsf-from-two"),
        pytest.param("auto/10", grid_engine(2, 10, 2), "5 tasks, not 10", id="sge-not-n"),
        pytest.param("auto/0-3", slurm(7), "not one of 0-3", id="outside-of-the-range"),
        pytest.param("auto/0-6:2", pbs(1, 5, 2), "not one of 0-6:2", id="between-two-steps"),
        pytest.param("auto/0", slurm(*range(4)), "at least 1", id="no-shards"),
        pytest.param("auto/5-1", slurm(1), "not the range", id="backwards"),
        pytest.param("auto/1-5:0", slurm(1), "not the range", id="no-step"),
        pytest.param("auto", [{"SLURM_ARRAY_TASK_ID": "x"}], "whole number", id="no-number"),
        pytest.param(
            "auto",
            [{**grid_engine(1, 4)[0], "SGE_TASK_STEPSIZE": "0"}],
            "does not set",
            id="step-of-zero",
        ),
        pytest.param("3/3", [{}], "0 to 2", id="index-too-large"),
        pytest.param("0/0", [{}], "at least 1", id="zero-of-zero"),
        pytest.param("x", [{}], "must be I/N", id="nonsense"),
        pytest.param("auto/", [{}], "must be I/N", id="auto-without-number"),
        pytest.param("auto/-3", [{}], "must be I/N", id="negative"),
        pytest.param("1/2/3", [{}], "must be I/N", id="three-parts"),
    ],
)
def test_a_shard_that_could_be_the_wrong_one_is_refused(text, tasks, message):
    for environ in tasks:
        with pytest.raises(ConfigError, match=message):
            parse_shard(text, environ)


def test_an_array_of_two_that_could_have_a_step_is_refused():
    """Indices 0 and 2 were both shard 0 of 2."""
    assert parse_shard("auto/2", {"PBS_ARRAY_INDEX": "0"}) == Shard(0, 2)
    with pytest.raises(ConfigError, match="consecutive"):
        parse_shard("auto/2", {"PBS_ARRAY_INDEX": "2"})


def double(number: int) -> int:
    return 2 * number


def test_tasks_run_here_in_order():
    assert list(map_tasks(double, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]


def test_a_cluster_is_not_started_for_nothing(monkeypatch):
    monkeypatch.setattr("distributed.LocalCluster", None)
    assert list(map_tasks(double, [], workers=8, dask="local")) == []
