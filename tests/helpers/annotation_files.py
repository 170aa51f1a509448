"""Contents of annotation files, in the layouts of ASAP, ImageScope and QuPath."""

import json
from pathlib import Path

import numpy as np


def square(x, y, side=10):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def closed(points):
    return [*points, points[0]]


def asap_polygon(group, points, *, name="a", kind="Polygon", orders=None):
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>'
        for order, (x, y) in zip(orders or range(len(points)), points, strict=True)
    )
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


def asap(*polygons, groups=(("Tumor", "None"), ("Exclusion", "None"))):
    declared = "".join(
        f'<Group Name="{name}" PartOfGroup="{parent}" Color="#64FE2E"><Attributes/></Group>'
        for name, parent in groups
    )
    return (
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>'
        f"{''.join(polygons)}</Annotations><AnnotationGroups>{declared}</AnnotationGroups>"
        "</ASAP_Annotations>"
    )


def feature(geometry, class_name=None, **properties):
    if class_name is not None:
        properties["classification"] = {"name": class_name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [closed(ring) for ring in rings]}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def vertices(points, tag="Vertex"):
    return "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in points)


def region(points, *, kind=0, negative=0, text="", number=1):
    return (
        f'<Region Id="{number}" Type="{kind}" Zoom="0.5" Text="{text}" NegativeROA="{negative}" '
        f'Analyze="1"><Attributes/><Vertices>{vertices(points)}</Vertices></Region>'
    )


def layer(*regions, name="", attributes=(("Description", ""),), number=1):
    listed = "".join(f'<Attribute Name="{key}" Id="0" Value="{v}"/>' for key, v in attributes)
    return (
        f'<Annotation Id="{number}" Name="{name}" Type="4" LineColor="65280" Visible="1">'
        f"<Attributes>{listed}</Attributes><Regions><RegionAttributeHeaders>"
        '<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/></RegionAttributeHeaders>'
        f"{''.join(regions)}</Regions><Plots/></Annotation>"
    )


def imagescope(*layers):
    return f'<Annotations MicronsPerPixel="0.252100">{"".join(layers)}</Annotations>'


def write_geojson(path: Path, rings: dict[str, np.ndarray]) -> Path:
    """Write rings (N, 2) by class name as QuPath does."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, ring in rings.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
