"""The tables of the command ``froc``: the list of slides, and scored patches with their lesions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.csv_files import check_spelling
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.csv_columns import Layout, NotPlainError, read_columns
from wsi_pipeline.evaluation.slide_names import SlideIndex, list_ids
from wsi_pipeline.evaluation.tables import find_column, parse_score, read_rows

# 1 and 0 as spreadsheets write them, and the words of CAMELYON16's reference.csv.
_LABELS = {
    **dict.fromkeys(("1", "1.0", "tumor", "tumour", "positive"), 1),
    **dict.fromkeys(("0", "0.0", "normal", "negative"), 0),
}


@dataclass(frozen=True)
class ListedSlide:
    """One row of a list of slides."""

    slide_id: str
    label: int  # 1 tumour, 0 normal
    patient: str  # the slide itself where the list has no patients
    lesions: str  # ids joined by ;


@dataclass(frozen=True)
class SlideList:
    """A list of slides."""

    path: Path
    slides: dict[str, ListedSlide]
    index: SlideIndex
    has_patients: bool


def read_slide_list(path: Path, *, with_lesions: bool = False) -> SlideList:
    """Read ``slide_id,label`` or ``slide_id,label,lesions``.

    With a header the columns may be in any order, a column ``patient`` is used, and more columns
    are allowed. A slide may be listed by its file's name.

    Raises
    ------
    EvaluationError
        Naming file and line.
    """
    columns = ("slide_id", "label", "lesions") if with_lesions else ("slide_id", "label")
    found = SlideList(path, {}, SlideIndex(), False)
    has_patients = False
    for where, line, fields in read_table(path, columns, optional=("patient",)):
        slide_id, label, *others, patient = fields
        if not slide_id:
            raise EvaluationError(f"{where}: the column 'slide_id' is empty")
        if label.lower() not in _LABELS:
            raise EvaluationError(
                f"{where}: label must be 1 (tumour) or 0 (normal), got '{label}'; "
                f"the columns are {','.join(columns)}"
            )
        found.index.add(slide_id, list_ids(slide_id), f"{path.name}, line {line}: {slide_id}")
        found.slides[slide_id] = ListedSlide(
            slide_id, _LABELS[label.lower()], patient or slide_id, others[0] if others else ""
        )
        has_patients |= bool(patient)
    if not found.slides:
        raise EvaluationError(f"{path}: lists no slides")
    return SlideList(path, found.slides, found.index, has_patients)


def read_table(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()
) -> Iterator[tuple[str, int, list[str]]]:
    """Read the named columns of a CSV; the header is optional.

    Without a header the fields of a row are `columns`, and those of `optional` are empty.

    Yields
    ------
    where, line, fields
        File and line in words, the line, and the fields: `columns`, then `optional`.
    """
    places: list[int | None] = [*range(len(columns)), *(None for _ in optional)]
    width = len(columns)
    for number, (line, fields) in enumerate(read_rows(path)):
        where = f"{path}, line {line}"
        if number == 0 and _is_header(fields, columns):
            missing = [name for name in columns if find_column(fields, name) is None]
            if missing:
                raise EvaluationError(
                    f"{where}: no column '{missing[0]}' in the header {','.join(fields)}; "
                    f"the columns are {','.join(columns)}"
                )
            names = [field.strip().lower() for field in fields]
            check_spelling(path, names, (*columns, *optional), error=EvaluationError)
            places = [find_column(fields, name) for name in (*columns, *optional)]
            width = len(fields)
            continue
        if len(fields) != width:
            raise EvaluationError(
                f"{where}: {len(fields)} fields, expected {width} ({','.join(columns)}), "
                "separated by commas"
            )
        yield where, line, ["" if place is None else fields[place] for place in places]


def _is_header(fields: list[str], columns: Sequence[str]) -> bool:
    """Whether the first row names columns: the slide's, or all others that are needed."""
    names = [field.lower() for field in fields]
    return columns[0] in names or all(find_column(fields, name) is not None for name in columns)


# ------------------------------------------------------------ scored patches


@dataclass(frozen=True)
class SlidePatches:
    """The scored patches of one slide."""

    scores: NDArray[np.float64]  # (N,) NaN = unreadable
    pairs: NDArray[np.int64]  # (M, 2) patch, index into the slide's lesions


def read_lesion_names(slides: SlideList) -> dict[str, list[str]]:
    """Read the ids of each listed slide's lesions.

    Raises
    ------
    EvaluationError
        If a slide's label and its lesions contradict each other, or a lesion is named twice.
    """
    return {s.slide_id: _check_lesions(slides.path, s) for s in slides.slides.values()}


def _check_lesions(path: Path, slide: ListedSlide) -> list[str]:
    names = _split_ids(slide.lesions)
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: slide {slide.slide_id} names a lesion twice: {names}")
    if slide.label == 1 and not names:
        raise EvaluationError(
            f"{path}: slide {slide.slide_id} has label 1 but no lesions; name them, or label it 0"
        )
    if slide.label == 0 and names:
        raise EvaluationError(
            f"{path}: slide {slide.slide_id} has label 0 but lesions {slide.lesions}; "
            "one of the two is wrong"
        )
    return names


def _split_ids(text: str) -> list[str]:
    return [name.strip() for name in text.split(";") if name.strip()]


def read_patches(
    path: Path, slides: SlideList, lesions: dict[str, list[str]]
) -> dict[str, SlidePatches]:
    """Read ``slide_id,score,lesions``: the patches of each listed slide.

    Raises
    ------
    EvaluationError
        Naming file and line of a slide that is not listed, or a lesion that its slide lacks.
    """
    try:
        return _read_plain_patches(path, slides, lesions)
    except NotPlainError:
        return _read_patches_by_row(path, slides, lesions)


_PATCH_COLUMNS = ("slide_id", "score", "lesions")


def _find_layout(fields: list[str]) -> Layout | None:
    places: list[int | None] = [0, 1, 2]
    is_header = _is_header(fields, _PATCH_COLUMNS)
    if is_header:
        places = [find_column(fields, name) for name in _PATCH_COLUMNS]
    slide, score, lesions = places
    if slide is None or score is None or lesions is None or not (is_header or len(fields) == 3):
        return None
    return Layout(is_header, numbers=(score,), names=(slide, lesions))


def _read_plain_patches(
    path: Path, slides: SlideList, lesions: dict[str, list[str]]
) -> dict[str, SlidePatches]:
    """Read a file of which every row is right."""
    found = read_columns(path, _find_layout)
    (scores,), (code, touched), (names, texts) = found.numbers, found.codes, found.names
    place = {slide_id: i for i, slide_id in enumerate(lesions)}
    slide_ids = [slides.index.find(list_ids(name)) if name else None for name in names]
    if None in slide_ids or ((scores < 0) | (scores > 1)).any():
        raise NotPlainError
    slide = np.array([place[s] for s in slide_ids if s is not None], np.int64)[code]
    order = np.argsort(slide, kind="stable")
    cuts = np.searchsorted(slide[order], np.arange(len(lesions) + 1))
    ids = [list(dict.fromkeys(_split_ids(text))) for text in texts]
    return {
        slide_id: SlidePatches(scores[rows], _pair_lesions(touched[rows], ids, lesions[slide_id]))
        for slide_id, start, end in zip(lesions, cuts[:-1], cuts[1:], strict=True)
        for rows in [order[start:end]]
    }


def _pair_lesions(
    codes: NDArray[np.int32], ids: Sequence[Sequence[str]], names: Sequence[str]
) -> NDArray[np.int64]:
    """Pair a slide's patches with its lesions: (M, 2), by patch."""
    index = {name: i for i, name in enumerate(names)}
    pairs = [np.zeros((0, 2), np.int64)]
    for code in np.unique(codes).tolist():
        if not index.keys() >= set(ids[code]):
            raise NotPlainError
        rows, own = np.flatnonzero(codes == code), [index[name] for name in ids[code]]
        pairs.append(np.column_stack([np.repeat(rows, len(own)), np.tile(own, len(rows))]))
    together = np.concatenate(pairs).astype(np.int64)
    return together[np.argsort(together[:, 0], kind="stable")]


def _read_patches_by_row(
    path: Path, slides: SlideList, lesions: dict[str, list[str]]
) -> dict[str, SlidePatches]:
    scores: dict[str, list[float]] = {slide_id: [] for slide_id in lesions}
    pairs: dict[str, list[tuple[int, int]]] = {slide_id: [] for slide_id in lesions}
    index = {s: {name: i for i, name in enumerate(names)} for s, names in lesions.items()}
    known: dict[str, str | None] = {}  # name as the file has it -> slide
    for where, _, (name, score, touched) in read_table(path, _PATCH_COLUMNS):
        if name not in known:
            known[name] = slides.index.find(list_ids(name))
        slide_id = known[name]
        if slide_id is None:
            raise EvaluationError(f"{where}: slide '{name}' is not listed in {slides.path}")
        row = len(scores[slide_id])
        unreadable = score.lower() in ("", "nan")
        scores[slide_id].append(np.nan if unreadable else parse_score(where, "score", score))
        for lesion in dict.fromkeys(_split_ids(touched)):
            if lesion not in index[slide_id]:
                raise EvaluationError(
                    f"{where}: slide {slide_id} has no lesion '{lesion}' in {slides.path}"
                )
            pairs[slide_id].append((row, index[slide_id][lesion]))
    return {
        slide_id: SlidePatches(
            np.array(scores[slide_id], dtype=np.float64),
            np.array(pairs[slide_id], dtype=np.int64).reshape(-1, 2),
        )
        for slide_id in lesions
    }
