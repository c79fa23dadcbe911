"""The finishing touch on an IR file that the exporter wrote: names that do not depend on the process that wrote it."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path


def number_names(path: Path) -> None:
    """Names the graph in an IR file's XML by its file, operations by type and place, and inner tensors not at all.

    The exporter numbers them as they come in its process, so that the same model would give different files.
    """
    tree = ElementTree.parse(path)  # noqa: S314 - the exporter's own file
    tree.getroot().set("name", path.stem)
    layers = list(tree.getroot().iterfind("layers/layer"))
    types = {layer.attrib["id"]: layer.attrib["type"] for layer in layers}
    edges = tree.getroot().iterfind("edges/edge")
    before_results = {edge.attrib["from-layer"] for edge in edges if types[edge.attrib["to-layer"]] == "Result"}
    for layer in layers:
        kind, number = layer.attrib["type"], layer.attrib["id"]
        layer.set("name", f"{kind}_{number}")
        if kind != "Parameter" and number not in before_results:
            for port in layer.iterfind("output/port"):
                port.attrib.pop("names", None)
    tree.write(path, encoding="utf-8", xml_declaration=True)
