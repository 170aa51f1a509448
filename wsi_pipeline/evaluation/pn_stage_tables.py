"""Tables of nodes and patients in the form of CAMELYON17: ``patient,stage``.

A row is a lymph node (``patient_000_node_0.tif,negative``) or a patient (``patient_000.zip,pN0``).
The patient of a node is what precedes ``_node_`` in its name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiling.wording import name_some, pluralize
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.pn_stage import NODE_CLASSES, STAGES, stage_patient
from wsi_pipeline.evaluation.slide_names import fold_name, list_ids
from wsi_pipeline.evaluation.tables import find_column, read_rows

NODE_NAME = re.compile(r"(?P<patient>.+)_node_(?P<node>\w+)", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.zip$", re.IGNORECASE)
_WORD_BY_KEY = {word.lower(): word for word in (*NODE_CLASSES, *STAGES)}


@dataclass
class PatientRows:
    """What a table holds of one patient."""

    name: str  # as the table has it, without .zip
    stage: str | None = None  # of its own row
    nodes: dict[str, str] = field(default_factory=dict)  # class by key of the node
    node_names: dict[str, str] = field(default_factory=dict)  # without the suffix of the file


@dataclass(frozen=True)
class StageTable:
    """A table of nodes and patients."""

    path: Path
    patients: dict[str, PatientRows]  # by key: names are compared without case

    def stage_by_rule(self, patient: PatientRows) -> str | None:
        """Derive the stage of a patient from its nodes; None where there are none."""
        try:
            return stage_patient(list(patient.nodes.values())) if patient.nodes else None
        except EvaluationError as error:
            raise EvaluationError(f"{self.path}: patient {patient.name}: {error}") from error

    def count(self) -> str:
        """Count what it holds, in words."""
        n_nodes = sum(len(patient.nodes) for patient in self.patients.values())
        n_staged = sum(patient.stage is not None for patient in self.patients.values())
        return (
            f"{pluralize(n_nodes, 'node')} of {pluralize(len(self.patients), 'patient')}, "
            f"{n_staged} with a stage"
        )


def read_stage_table(path: Path) -> StageTable:
    """Read a table in the form of CAMELYON17.

    With a header, the columns ``patient`` and ``stage`` may be anywhere and others are ignored;
    without one they are the first two. Words and names are compared without regard to case.

    Raises
    ------
    EvaluationError
        Naming the file, and the line of a row that is neither a node nor a patient, whose word is
        none of its kind, or that repeats another.
    """
    table = StageTable(path, {})
    columns: tuple[int, int] | None = None
    line_of: dict[str, int] = {}
    for line, fields in read_rows(path):
        if columns is None:
            columns = _find_columns(fields)
            if columns is not None:
                continue
            columns = (0, 1)
            if len(fields) < 2 or fields[1].lower() not in _WORD_BY_KEY:
                raise EvaluationError(
                    f"{path}: neither a header with the columns patient and stage, nor rows of a "
                    f"name and a class; its first line is '{','.join(fields)}'"
                )
        name, word = (fields[i] if i < len(fields) else "" for i in columns)
        _add_row(table, name, word, where=f"{path}, line {line}", line=line, line_of=line_of)
    if not table.patients:
        raise EvaluationError(f"{path}: no node and no patient; rows are like p1_node_0.tif,macro")
    return table


def _find_columns(fields: Sequence[str]) -> tuple[int, int] | None:
    name = find_column(fields, "patient")
    name = find_column(fields, "slide_id") if name is None else name
    stage = find_column(fields, "stage")
    return None if name is None or stage is None else (name, stage)


def _add_row(
    table: StageTable, name: str, word: str, *, where: str, line: int, line_of: dict[str, int]
) -> None:
    short = list_ids(name)[-1]
    node = NODE_NAME.fullmatch(short)
    patient_name = node["patient"] if node else _ARCHIVE.sub("", short)
    if not node and patient_name == short and fold_name(word) not in map(fold_name, STAGES):
        raise EvaluationError(
            f"{where}: '{name}' is neither a node (patient_000_node_0.tif) nor a patient "
            "(patient_000.zip); rename it"
        )
    value = _parse_word(word, name, node is not None, where)
    key = fold_name(short if node else f"{patient_name}.zip")
    if key in line_of:
        raise EvaluationError(
            f"{where}: '{name}' is already listed on line {line_of[key]}; keep one of the two"
        )
    line_of[key] = line
    patient = table.patients.setdefault(fold_name(patient_name), PatientRows(patient_name))
    if node:
        number = fold_name(node["node"])
        patient.nodes[number] = value
        patient.node_names[number] = short
    else:
        patient.stage = value


def _parse_word(word: str, name: str, is_node: bool, where: str) -> str:
    value, known = _WORD_BY_KEY.get(word.lower()), NODE_CLASSES if is_node else STAGES
    if value is None or value not in known:
        got = f"got '{word}'" if word else "but the field is empty"
        kind = "node" if is_node else "patient"
        raise EvaluationError(
            f"{where}: the stage of {kind} '{name}' must be one of {', '.join(known)}, {got}"
        )
    return value


def check_numbers(
    table: StageTable, nodes_per_patient: int, *, fewer_allowed: bool = False
) -> list[str]:
    """Check that patients with nodes have as many as they should.

    Parameters
    ----------
    nodes_per_patient : int
        0: any number.

    Returns
    -------
    fewer : list of str
        Patients with fewer nodes, and how many they have.

    Raises
    ------
    EvaluationError
        Naming the patients with another number, fewer nodes included unless `fewer_allowed`.
    """
    odd: list[str] = []
    fewer: list[str] = []
    for patient in table.patients.values():
        n = len(patient.nodes)
        if nodes_per_patient and n and n != nodes_per_patient:
            allowed = fewer_allowed and n < nodes_per_patient
            (fewer if allowed else odd).append(f"{patient.name} ({n})")
    if odd:
        raise EvaluationError(
            f"{table.path}: {pluralize(len(odd), 'patient')} without exactly "
            f"{pluralize(nodes_per_patient, 'node')}: {name_some(odd)}; correct the rows, give "
            "the number with --nodes (0: any), or count missing predictions as negative with "
            "--missing negative"
        )
    return fewer


def find_contradictions(table: StageTable) -> list[str]:
    """List patients whose own row differs from the stage of their nodes, in words."""
    found = []
    for patient in table.patients.values():
        by_rule = table.stage_by_rule(patient)
        if patient.stage is not None and by_rule not in (None, patient.stage):
            found.append(f"{patient.name} ({patient.stage}, by its nodes {by_rule})")
    return found
