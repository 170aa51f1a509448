"""The leak guard: no model is tested on a patient that it was trained on.

The header of a checkpoint names what it was trained on, and each score file carries that along, so
the guard also works for a checkpoint from elsewhere, and for splits that were changed after the
training.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiling.wording import name_some, pluralize
from wsi_pipeline.errors import EvaluationError

_SHOWN = 8  # names in a sentence


@dataclass(frozen=True)
class Seen:
    """A slide that is to be tested, and what the model that scored it has seen."""

    slide_id: str
    patient: str
    trained_on: Mapping[str, Sequence[str]] | None  # by `contracts.PROVENANCE`; None: not known


def refuse_leaks(slides: Iterable[Seen], *, evaluated: str = "test") -> list[str]:
    """See that no slide and no patient under test took part in training or validation.

    Parameters
    ----------
    slides : Seen
        Those that are evaluated.
    evaluated : {"test", "val", "train", "all"}
        The split that was asked for. Validation slides may have served validation. Who asks for
        train or all by name gets a note in place of a refusal.

    Returns
    -------
    notes : sentences
        Where it could not be checked, or the model has seen what it is evaluated on.

    Raises
    ------
    EvaluationError
        Naming the patients, and what to do.
    """
    tested = list(slides)
    roles = {"train": "trained"} if evaluated == "val" else {"train": "trained", "val": "validated"}
    for split, role in roles.items():
        leaked = sorted({slide.patient for slide in tested if _took_part(slide, split)})
        if leaked and evaluated in ("train", "all"):
            return [
                f"no test: the model was {role} on {_count(leaked)} of those evaluated here "
                f"(evaluate.split={evaluated})"
            ]
        if leaked:
            raise EvaluationError(
                f"the model was {role} on {_count(leaked)} that it would be tested on: "
                f"{name_some(leaked, _SHOWN)}; take them out of the split {evaluated}, or "
                "evaluate a model that has not seen them (if these are others of the same name, "
                "rename them in the manifest)"
            )
    unknown = [slide.slide_id for slide in tested if slide.trained_on is None]
    if unknown:
        return [
            f"{pluralize(len(unknown), 'score file')} without the slides that the model was "
            f"trained on, so leaks could not be checked: {name_some(unknown, _SHOWN)}"
        ]
    return []


def _took_part(slide: Seen, split: str) -> bool:
    known: Mapping[str, Any] = slide.trained_on or {}
    return slide.slide_id in known.get(f"{split}_slides", ()) or slide.patient in known.get(
        f"{split}_patients", ()
    )


def _count(patients: Sequence[str]) -> str:
    return pluralize(len(patients), "patient")
