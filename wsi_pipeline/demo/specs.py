"""Specification of a drawn slide; values are checked before drawing."""

from dataclasses import dataclass
from typing import Literal

from wsi_pipeline.contracts import Split
from wsi_pipeline.demo.textures import MAX_REACH
from wsi_pipeline.errors import ConfigError

MPP = 0.5  # µm per level-0 px of every drawn slide
CUT_GROUPS = ("Exclusion", "_2")  # annotation groups that cut out of a tumour
MIN_SIDE_PX = 400  # smaller slides have no room for what is drawn on them


@dataclass(frozen=True)
class TumourSpec:
    """One tumour to draw."""

    at: tuple[float, float]  # centre, share of the slide's (width, height)
    diameter_um: float
    hole_um: float = 0.0  # diameter of the normal tissue within; 0: none
    hole_group: Literal["Exclusion", "_2"] = "Exclusion"  # the annotation group that cuts the hole
    group: str = "Tumor"  # the annotation group of the tumour
    infiltrated: float = 0.0  # share of its cells that lymphocytes replace


@dataclass(frozen=True)
class SlideSpec:
    """One slide to draw."""

    slide_id: str
    patient: str  # patients share a stain and a seed, so their slides look alike
    split: Split
    size: tuple[int, int] = (2900, 2800)  # (width, height), level-0 px
    tumours: tuple[TumourSpec, ...] = ()
    lymphoid: float = 0.35  # share of the tissue that is dense with lymphocytes
    n_glands: int = 10
    n_vessels: int = 6
    n_fat: int = 2  # clusters of fat cells
    n_follicles: int = 0  # lymphoid follicles, whose germinal centres resemble tumour
    pens: tuple[tuple[int, int, int], ...] = ()  # (R, G, B) of each stroke on the glass

    def __post_init__(self) -> None:
        if min(self.size) < MIN_SIDE_PX:
            raise ConfigError(
                f"{self.slide_id}: a drawn slide is at least {MIN_SIDE_PX} px wide and high, "
                f"got {self.size}"
            )
        for tumour in self.tumours:
            self._check_tumour(tumour)

    def _check_tumour(self, tumour: TumourSpec) -> None:
        reach = MAX_REACH * tumour.diameter_um / 2 / MPP
        for share, length in zip(tumour.at, self.size, strict=True):
            if not reach <= share * length <= length - reach:
                raise ConfigError(
                    f"{self.slide_id}: a tumour of {tumour.diameter_um:g} µm at {tumour.at} may "
                    f"leave its slide of {self.size} px ({MPP} µm/px); move it or make it smaller"
                )
        if not 0 <= tumour.infiltrated < 1:
            raise ConfigError(
                f"{self.slide_id}: infiltrated must be at least 0 and below 1, "
                f"got {tumour.infiltrated:g}"
            )
        if not 0 <= tumour.hole_um <= tumour.diameter_um / 3:
            raise ConfigError(
                f"{self.slide_id}: a hole may be a third of its tumour's {tumour.diameter_um:g} µm "
                f"at most, got {tumour.hole_um:g} µm"
            )
