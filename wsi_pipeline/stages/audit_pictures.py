"""Pictures of the label audit: a histogram of shares, and a sheet of the least certain patches."""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiling.annotation.audit import GROUPS, N_BINS, Group
from tiling.wording import format_percent

CELL_PX = 232  # side of a patch in the sheet
TEXT_PX = 40  # under it
GAP_PX = 10
COLUMNS = 6
HEAD_PX = 54
SAYS_PX = 30  # line over each group
FRAME_PX = 4

COLOUR_BY_GROUP = {"positive": (220, 30, 30), "negative": (0, 150, 70), "ignored": (120, 120, 120)}
OUTLINE = (0, 235, 60)  # H&E has no green
SQUARE = (255, 225, 0)
BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (225, 225, 225)
TITLE_BY_GROUP = {
    "positive": "positive, with the least tumour in the inner square",
    "negative": "negative, with the most tumour in or around the inner square",
    "ignored": "ignored, nearest to a bound of the rule",
}


@dataclass(frozen=True)
class Sample:
    """A patch in the sheet."""

    pixels: NDArray[np.uint8] | None  # (P, P, 3); None: cannot be read
    lines: list[NDArray[np.float64]]  # outlines in it, (n, 2) x, y in shares of the side
    inner: float  # side of the inner square, share of the side
    group: Group
    caption: str
    share: float  # of the inner square that is tumour
    around: float  # mean share of the squares around it


def draw_sheet(file: BinaryIO, samples: list[Sample]) -> None:
    """Draw patches with their inner square and the annotation's outline, by group."""
    step = (CELL_PX + GAP_PX, CELL_PX + TEXT_PX + GAP_PX)
    groups = {name: [s for s in samples if s.group == name] for name in GROUPS}
    groups = {name: found for name, found in groups.items() if found}
    n_rows = {name: -(-len(found) // COLUMNS) for name, found in groups.items()}
    height = HEAD_PX + sum(SAYS_PX + rows * step[1] for rows in n_rows.values())
    sheet = Image.new("RGB", (GAP_PX + COLUMNS * step[0], height), WHITE)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw)
    top = HEAD_PX
    for name, found in groups.items():
        draw.text((GAP_PX, top + 4), TITLE_BY_GROUP[name], COLOUR_BY_GROUP[name], _font(16))
        top += SAYS_PX
        for at, sample in enumerate(found):
            corner = (GAP_PX + at % COLUMNS * step[0], top + at // COLUMNS * step[1])
            _draw_sample(sheet, draw, corner, sample)
        top += n_rows[name] * step[1]
    sheet.save(file, format="PNG")


def _draw_head(draw: ImageDraw.ImageDraw) -> None:
    draw.text((GAP_PX, 6), "The least certain labels", BLACK, _font(20))
    for left, colour, text in ((270, SQUARE, "inner square"), (400, OUTLINE, "annotation")):
        draw.line([(left, 19), (left + 22, 19)], BLACK, 5)
        draw.line([(left, 19), (left + 22, 19)], colour, 3)
        draw.text((left + 28, 10), text, BLACK, _font(14))


def _draw_sample(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], sample: Sample
) -> None:
    x, y = corner
    sheet.paste(_draw_patch(sample), (x, y))
    edge = (x - FRAME_PX // 2, y - FRAME_PX // 2, x + CELL_PX + 1, y + CELL_PX + 1)
    draw.rectangle(edge, outline=COLOUR_BY_GROUP[sample.group], width=FRAME_PX // 2)
    font = _font(14)
    caption = sample.caption
    if draw.textlength(caption, font) > CELL_PX:
        while draw.textlength(f"...{caption}", font) > CELL_PX:  # its end identifies the patch
            caption = caption[1:]
        caption = f"...{caption}"
    draw.text((x, y + CELL_PX + 3), caption, BLACK, font)
    draw.text((x, y + CELL_PX + 20), _format_sample(sample), BLACK, font)


def _draw_patch(sample: Sample) -> Image.Image:
    size = (CELL_PX, CELL_PX)
    if sample.pixels is None:
        patch = Image.new("RGB", size, GREY)
        ImageDraw.Draw(patch).text((10, 10), "cannot be read", BLACK, _font(14))
    else:
        patch = Image.fromarray(sample.pixels).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(patch)
    low = round(CELL_PX * (1 - sample.inner) / 2)
    high = CELL_PX - 1 - low
    for colour, width, grow in ((BLACK, 4, 1), (SQUARE, 2, 0)):
        draw.rectangle((low - grow, low - grow, high + grow, high + grow), None, colour, width)
    for colour, width in ((BLACK, 5), (OUTLINE, 3)):
        for line in sample.lines:
            draw.line([(px, py) for px, py in (line * CELL_PX).tolist()], colour, width, "curve")
    return patch


def _format_sample(sample: Sample) -> str:
    around = f", around it {format_percent(sample.around)}" if sample.group == "negative" else ""
    return f"tumour {_percent(sample.share)}{around}"


def _percent(share: float) -> str:
    """Format a share such that values just above 0 or just below 1 do not look like 0 or 1."""
    text = f"{100 * share:.2f} %"
    if share > 0 and text == "0.00 %":
        return f"{100 * share:.1g} %"
    return "just under 100 %" if share < 1 and text == "100.00 %" else text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def draw_histogram(file: BinaryIO, shares: NDArray[np.int64]) -> None:
    """Draw how many patches have which share of tumour.

    Parameters
    ----------
    file : binary file
        Gets a PNG.
    shares : (3, N_BINS + 2)
        Of `GROUPS`; the first bin is exactly 0, the last exactly 1.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = np.concatenate([[-0.07], np.arange(N_BINS) / N_BINS, [1.02]])
    bottom = np.zeros(shares.shape[1])
    for name, counts in zip(GROUPS, shares, strict=True):
        if counts.any():
            colour = tuple(value / 255 for value in COLOUR_BY_GROUP[name])
            label = f"{name}: {counts.sum():,}"
            axes.bar(left, counts, 1 / N_BINS, bottom, align="edge", color=colour, label=label)
        bottom += counts
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, max(2.0, bottom.max() * 2))
    axes.set_xticks([-0.045, 0.25, 0.5, 0.75, 1.045], ["none", "0.25", "0.5", "0.75", "all"])
    axes.set_xlabel("share of the inner square that is tumour")
    axes.set_ylabel("patches")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
