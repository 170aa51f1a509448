"""Results that others published on the CAMELYON16 test set, which reports show as context.

References
----------
.. [1] B. Ehteshami Bejnordi et al., "Diagnostic Assessment of Deep Learning Algorithms for
   Detection of Lymph Node Metastases in Women With Breast Cancer", JAMA 2017;318(22):2199-2210,
   doi 10.1001/jama.2017.14585: table 2 (the 13 best of 32 algorithms by ROC AUC, with intervals),
   and the text on the pathologist.
.. [2] Z. Zhao et al., "PFA-ScanNet: Pyramidal Feature Aggregation with Synergistic Learning for
   Breast Cancer Metastasis Analysis", MICCAI 2019, arXiv 1905.01040.
"""

from dataclasses import dataclass

_JAMA = "Ehteshami Bejnordi et al., JAMA 2017;318:2199-2210"
_TABLE = f"{_JAMA}, table 2"


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure, with its 95 % interval where there is one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Published:
    """A result on the CAMELYON16 test set; None where nothing was published."""

    method: str
    froc: PublishedFigure | None  # its score, by the challenge's definition
    slide_auc: PublishedFigure | None
    source: str


def _team(name: str, *numbers: float) -> Published:
    """Compose a row of the table: FROC score, its ends, ROC AUC of slides, its ends."""
    froc, froc_low, froc_high, auc, auc_low, auc_high = numbers
    return Published(
        name,
        PublishedFigure(froc, (froc_low, froc_high)),
        PublishedFigure(auc, (auc_low, auc_high)),
        _TABLE,
    )


# By ROC AUC, as in the table.
PUBLISHED = (
    _team("HMS and MIT II (GoogLeNet)", 0.807, 0.732, 0.889, 0.994, 0.983, 0.999),
    _team("HMS and MGH III (ResNet)", 0.760, 0.692, 0.857, 0.976, 0.941, 0.999),
    _team("HMS and MGH I (GoogLeNet)", 0.596, 0.578, 0.734, 0.964, 0.928, 0.989),
    _team("CULab III (VGG-16)", 0.703, 0.605, 0.799, 0.940, 0.888, 0.980),
    _team("HMS and MIT I (GoogLeNet)", 0.693, 0.600, 0.819, 0.923, 0.855, 0.977),
    _team("ExB I (ResNet)", 0.511, 0.363, 0.620, 0.916, 0.858, 0.962),
    _team("CULab I (VGG-Net)", 0.544, 0.467, 0.629, 0.909, 0.851, 0.954),
    _team("HMS and MGH II (ResNet)", 0.729, 0.596, 0.788, 0.908, 0.846, 0.961),
    _team("CULab II (VGG-Net & ResNet)", 0.527, 0.335, 0.627, 0.906, 0.841, 0.957),
    _team("DeepCare I (GoogLeNet)", 0.243, 0.197, 0.356, 0.883, 0.806, 0.943),
    _team("Quincy Wong I (SegNet)", 0.367, 0.250, 0.521, 0.865, 0.789, 0.924),
    _team(
        "Middle East Technical University I (4-layer CNN)",
        *(0.389, 0.272, 0.512, 0.864, 0.786, 0.927),
    ),
    _team("NLP LOGIX I (AlexNet)", 0.386, 0.255, 0.511, 0.830, 0.742, 0.899),
    Published(
        "Pathologist without time limit", None, PublishedFigure(0.966, (0.927, 0.998)), _JAMA
    ),
    Published("PFA-ScanNet", PublishedFigure(0.902), None, "Zhao et al., arXiv 1905.01040"),
)
