"""Oracles in plain Python: the definitions of docs/evaluate.md and docs/froc.md, item by item."""

import itertools
import math

import numpy as np
import pytest


class Oracle:
    """Slow and plain; shares no code with the package."""

    @staticmethod
    def lesions(tumour, downsample, mpp):
        """Labels (lists of rows) and the set of ITC labels of a small mask."""
        height, width = len(tumour), len(tumour[0])
        cells = [(r, c) for r in range(height) for c in range(width)]
        seeds = [(r, c) for r, c in cells if tumour[r][c]]
        limit = 75 / (mpp * downsample * 2)
        grown = {
            (r, c) for r, c in cells if any(math.hypot(r - a, c - b) < limit for a, b in seeds)
        }
        # Holes: background that no walk along edges joins to the outside.
        outside = [(-1, c) for c in range(-1, width + 1)]
        seen = set(outside)
        while outside:
            r, c = outside.pop()
            for p in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if -1 <= p[0] <= height and -1 <= p[1] <= width and p not in seen | grown:
                    seen.add(p)
                    outside.append(p)
        filled = {p for p in cells if p not in seen}
        labels = [[0] * width for _ in range(height)]
        regions = []
        for start in cells:
            if start in filled and not labels[start[0]][start[1]]:
                regions.append([])
                todo = [start]
                labels[start[0]][start[1]] = len(regions)
                while todo:
                    r, c = todo.pop()
                    regions[-1].append((r, c))
                    for dr in (-1, 0, 1):
                        for dc in (-1, 0, 1):
                            p = (r + dr, c + dc)
                            if p in filled and not labels[p[0]][p[1]]:
                                labels[p[0]][p[1]] = len(regions)
                                todo.append(p)
        axes = [Oracle.major_axis(region) for region in regions]
        itc = {i + 1 for i, axis in enumerate(axes) if axis < 275 / (mpp * downsample)}
        return labels, itc

    @staticmethod
    def major_axis(region):
        """Four standard deviations along the longest axis of a set of pixels."""
        n = len(region)
        mr, mc = sum(r for r, _ in region) / n, sum(c for _, c in region) / n
        rr = sum((r - mr) ** 2 for r, _ in region) / n
        cc = sum((c - mc) ** 2 for _, c in region) / n
        rc = sum((r - mr) * (c - mc) for r, c in region) / n
        return 4 * math.sqrt((rr + cc) / 2 + math.sqrt(((rr - cc) / 2) ** 2 + rc**2))

    @staticmethod
    def match(labels, itc, downsample, detections):
        """False positives, and best score or None by lesion, of one slide."""
        numbers = sorted({v for row in labels for v in row if v}) if labels else []
        if not numbers:
            return [p for p, _, _ in detections], {}
        best = {v: None for v in numbers if v not in itc}
        fps = []
        for p, x, y in detections:
            row, col = math.floor(y / downsample), math.floor(x / downsample)
            inside = row < len(labels) and col < len(labels[0])
            v = labels[row][col] if inside else 0
            if v == 0:
                fps.append(p)
            elif v not in itc and (best[v] is None or p > best[v]):
                best[v] = p
        return fps, best

    @staticmethod
    def corners(points):
        """Leave out the points within horizontal lines; of equal points, keep the first."""
        distinct = points[:1]
        distinct += [p for last, p in itertools.pairwise(points) if p[1:] != last[1:]]
        return [
            p
            for i, p in enumerate(distinct)
            if i in (0, len(distinct) - 1) or not distinct[i - 1][2] == p[2] == distinct[i + 1][2]
        ]

    @staticmethod
    def curve(slides, *, denominator, definition="camelyon16"):
        """Points (threshold, avg_fps, sensitivity) of slides (fps, {lesion: best}, normal)."""
        counted = [s for s in slides if s[2]] if denominator == "normal" else slides
        n = len(counted)
        n_lesions = sum(len(best) for _, best, _ in slides)
        scores = {p for fps, _, _ in slides for p in fps}
        scores |= {p for _, best, _ in slides for p in best.values() if p is not None}
        points = [(None, 0.0 if n else None, 0.0 if n_lesions else None)]
        for t in sorted(scores, reverse=True):
            fp = sum(p >= t for fps, _, _ in counted for p in fps)
            hit = sum(p is not None and p >= t for _, best, _ in slides for p in best.values())
            points.append((t, fp / n if n else None, hit / n_lesions if n_lesions else None))
        return points

    @staticmethod
    def read(points, rate, how):
        """Sensitivity at a rate."""
        if how == "step":
            return max(s for _, f, s in points if f <= rate)
        at = [s for _, f, s in points if f == rate]
        if at:
            return max(at)
        f0 = max(f for _, f, _ in points if f < rate)
        s0 = max(s for _, f, s in points if f == f0)
        right = [f for _, f, _ in points if f > rate]
        if not right:
            return s0
        f1 = min(right)
        s1 = min(s for _, f, s in points if f == f1)
        return s0 + (s1 - s0) * (rate - f0) / (f1 - f0)

    @staticmethod
    def published_lesions(tumour, downsample, mpp):
        """The published method on the whole mask: distance transform, holes, labels, axes."""
        from scipy import ndimage
        from skimage.measure import label, regionprops

        if not tumour.any():
            return np.zeros(tumour.shape, int), np.zeros(0, bool)
        distance = ndimage.distance_transform_edt(~tumour)
        binary = distance < 75 / (mpp * downsample * 2)
        labels = label(ndimage.binary_fill_holes(binary), connectivity=2)
        axes = np.array([r.axis_major_length for r in regionprops(labels)])
        return labels, axes < 275 / (mpp * downsample)


@pytest.fixture(scope="session")
def oracle():
    return Oracle
