"""Several teams' FROC on one reference: a ranked table, with intervals and paired tests.

All teams are scored on the same slides, and on the same resampled sets of them: what is hard about
a slide is hard for all, and cancels in the difference of two teams.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json
from tiling.wording import name_some
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.froc import replicate_sensitivities
from wsi_pipeline.evaluation.froc_files import FrocOptions, ScoredSlides, score_slides
from wsi_pipeline.evaluation.intervals import compare_paired
from wsi_pipeline.evaluation.reference import read_reference
from wsi_pipeline.names import check_name, name_key

FILE = "teams.json"
REPLICATES = 1000  # where none are asked for: a rank without an interval says little


@dataclass(frozen=True)
class Team:
    """One team's detections, or scored patches."""

    name: str  # of its folder of results
    path: Path


def name_teams(paths: Sequence[Path]) -> list[Team]:
    """Name each team by its folder or file.

    Raises
    ------
    EvaluationError
        If two have one name, or a name cannot be that of a folder.

    Examples
    --------
    >>> [team.name for team in name_teams([Path("a/team_1"), Path("b/team_2.csv")])]
    ['team_1', 'team_2']
    """
    teams: dict[str, Team] = {}
    for path in paths:
        folder = path.resolve()
        name = folder.name.removesuffix(".csv")
        check_name(name, f"{path}: the team's name", error=EvaluationError)
        other = teams.setdefault(name_key(name), Team(name, path))
        if other.path is not path:
            raise EvaluationError(
                f"{other.path} and {path} both name the team '{name}'; rename one of them"
            )
    return list(teams.values())


def run_teams(
    teams: Sequence[Team], options: FrocOptions, *, print_line: PrintLine
) -> list[dict[str, Any]]:
    """Score teams on one reference and rank them by their FROC score.

    Parameters
    ----------
    teams : sequence of Team
        At least two.
    options : FrocOptions
        Its `detections` (or `patches`) and `out` are replaced by each team's; without `bootstrap`
        there are `REPLICATES`.
    print_line : callable
        Called with each line for the user.

    Returns
    -------
    rows : list of dict
        As written to ``teams.json``, the best team first: ``rank``, ``team``, ``score``,
        ``score_ci95``, ``sensitivity_at``; and against the best team ``difference``,
        ``difference_ci95`` and ``p_value``. Teams of one score share a rank.

    Raises
    ------
    EvaluationError
        If a team's files are wrong, the teams are on different slides, or a score is undefined.
    """
    _check_files(teams)
    options = replace(options, bootstrap=options.bootstrap or REPLICATES)
    found: list[tuple[Team, ScoredSlides]] = []
    read = functools.cache(read_reference)  # finding the lesions takes longer than matching points
    for team in teams:
        print_line(f"--- {team.name}")
        own = replace(options, out=options.out / team.name)
        if options.definition == "camelyon16":
            own = replace(own, detections=team.path)
        else:
            own = replace(own, patches=team.path)
        found.append((team, score_slides(own, print_line=print_line, read=read)))
        _check_same_slides(found[0], found[-1])
        if found[-1][1].curve.score is None:
            reason = found[-1][1].curve.undefined["score"]
            raise EvaluationError(f"{team.path}: no FROC score to rank by: {reason}")
    found.sort(key=lambda pair: -(pair[1].curve.score or 0.0))
    rows = [_describe(team, scored, found[0][1]) for team, scored in found]
    scores = [row["score"] for row in rows]
    for row in rows:
        row["rank"] = 1 + sum(score > row["score"] for score in scores)
    write_json(options.out / FILE, {"teams": rows})
    _write_table(options.out / "teams.csv", rows)
    return rows


def _check_files(teams: Sequence[Team]) -> None:
    """Refuse a misspelt path before the first team is scored, which can take minutes."""
    missing = [str(team.path) for team in teams if not team.path.exists()]
    if missing:
        raise EvaluationError(f"{', '.join(missing)}: no such file or folder")


def _check_same_slides(first: tuple[Team, ScoredSlides], other: tuple[Team, ScoredSlides]) -> None:
    ours, theirs = set(first[1].slide_ids), set(other[1].slide_ids)
    if ours == theirs and first[1].slide_ids != other[1].slide_ids:
        raise EvaluationError(
            "the teams' slides come in another order, by which they are resampled; list them with "
            "--slides"
        )
    if ours != theirs:
        only = {first[0].path: ours - theirs, other[0].path: theirs - ours}
        parts = [f"only with {path}: {name_some(sorted(ids))}" for path, ids in only.items() if ids]
        raise EvaluationError(
            f"the teams are on different slides ({'; '.join(parts)}); list all slides with "
            "--slides, so that one without detections counts as such"
        )


def _describe(team: Team, scored: ScoredSlides, best: ScoredSlides) -> dict[str, Any]:
    curve = scored.curve
    assert curve.score is not None
    assert best.curve.score is not None
    row: dict[str, Any] = {
        "rank": 0,
        "team": team.name,
        "score": curve.score,
        "score_ci95": None if curve.score_ci95 is None else list(curve.score_ci95),
        "sensitivity_at": dict(curve.sensitivity_at),
    }
    if scored is best:
        return row | {"difference": 0.0, "difference_ci95": None, "p_value": None}
    assert scored.resamples is not None
    compared = compare_paired(
        _replicate_scores(best),
        _replicate_scores(scored),
        scored.resamples,
        difference=best.curve.score - curve.score,
        kinds=scored.events.kinds,
    )
    values, _ = compared.to_json()
    return row | {key: values[key] for key in ("difference", "difference_ci95", "p_value")}


def _replicate_scores(scored: ScoredSlides) -> NDArray[np.float64]:
    """Compute a team's score on each resampled set: (B,)."""
    assert scored.resamples is not None
    rates = [float(name) for name in scored.curve.sensitivity_at]
    read = replicate_sensitivities(
        scored.events, scored.resamples.weights, rates=rates, at_rate=scored.curve.at_rate
    )
    found: NDArray[np.float64] = read.mean(axis=1)
    return found


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    rates = list(rows[0]["sensitivity_at"])
    header = ["rank", "team", "score", "score_low", "score_high"]
    header += [f"sensitivity_at_{rate}" for rate in rates]
    header += ["behind_best", "behind_best_low", "behind_best_high", "p_value"]
    write_csv(
        path,
        header,
        [
            [
                *(row["rank"], row["team"], row["score"], *(row["score_ci95"] or (None, None))),
                *(row["sensitivity_at"][rate] for rate in rates),
                *(row["difference"], *(row["difference_ci95"] or (None, None)), row["p_value"]),
            ]
            for row in rows
        ],
    )


def describe_ranking(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Format the ranking as lines of text."""
    width = max(len("team"), *(len(row["team"]) for row in rows))
    lines = [
        f"{'rank':>4}  {'team':<{width}}  score (95 % CI)            behind the best (95 % CI), p"
    ]
    for row in rows:
        behind = "" if row["p_value"] is None else _behind(row)
        interval = _interval(row["score_ci95"])
        lines.append(
            f"{row['rank']:>4}  {row['team']:<{width}}  {row['score']:.4f}{interval:<21}"
            f"{behind}".rstrip()
        )
    return lines


def _behind(row: dict[str, Any]) -> str:
    return f"{row['difference']:.4f}{_interval(row['difference_ci95'])}, {row['p_value']:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.4f} to {ends[1]:.4f})"
