"""Networks that several rooms use: build by name, load, import official weights. Importing this loads no torch."""

from toolkit.zoo.catalogue import CLASSES, LAYOUTS, NAMED, PUBLISHED, SHIPPED, Entry, Layout, local
from toolkit.zoo.counting import build_on_meta, count_flops, count_parameters
from toolkit.zoo.loading import load
from toolkit.zoo.registry import (
    import_weights,
    list_layouts,
    list_networks,
    list_published,
    list_shipped,
    show_network,
)
from toolkit.zoo.upscalers import list_upscalers

__all__ = [
    "CLASSES",
    "LAYOUTS",
    "NAMED",
    "PUBLISHED",
    "SHIPPED",
    "Entry",
    "Layout",
    "build_on_meta",
    "count_flops",
    "count_parameters",
    "import_weights",
    "list_layouts",
    "list_networks",
    "list_published",
    "list_shipped",
    "list_upscalers",
    "load",
    "local",
    "show_network",
]
