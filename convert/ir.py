"""Reproducible names in exported IR files, independent of the process that wrote them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path


def number_names(path: Path) -> None:
    """Rename the graph in an IR file after the file and operations by type and id; remove the names of inner tensors.

    The exporter numbers names per process, so the same model would give different files.
    """
    tree = ElementTree.parse(path)  # noqa: S314 - the exporter's own file
    tree.getroot().set("name", path.stem)
    layers = list(tree.getroot().iterfind("layers/layer"))
    types = {layer.attrib["id"]: layer.attrib["type"] for layer in layers}
    edges = tree.getroot().iterfind("edges/edge")
    output_ids = {edge.attrib["from-layer"] for edge in edges if types[edge.attrib["to-layer"]] == "Result"}
    for layer in layers:
        layer_type, layer_id = layer.attrib["type"], layer.attrib["id"]
        layer.set("name", f"{layer_type}_{layer_id}")
        if layer_type != "Parameter" and layer_id not in output_ids:
            for port in layer.iterfind("output/port"):
                port.attrib.pop("names", None)
    tree.write(path, encoding="utf-8", xml_declaration=True)
