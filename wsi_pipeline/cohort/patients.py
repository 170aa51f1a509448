"""Patients by the names of files."""

import re
from collections.abc import Callable

from wsi_pipeline.errors import ManifestError


def patient_finder(pattern: str, *, option: str) -> Callable[[str], str]:
    """Return a function that finds the patient in a file's name.

    Parameters
    ----------
    pattern : str
        Regular expression; its first group is the patient, or else the whole match.
    option : str
        Where the pattern was given, for messages.

    Raises
    ------
    ManifestError
        If the pattern is no regular expression; by the function, if it finds no patient in a name.

    Examples
    --------
    >>> patient_finder(r"(patient_\\d+)_node", option="--patient-from")("patient_017_node_2.tif")
    'patient_017'
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ManifestError(f"{option} '{pattern}' is no regular expression ({error})") from error

    def find(name: str) -> str:
        match = wanted.search(name)
        patient = match[1 if wanted.groups else 0] if match else None
        if not patient:
            raise ManifestError(f"{name}: {option} '{pattern}' finds no patient in its name")
        return patient

    return find
