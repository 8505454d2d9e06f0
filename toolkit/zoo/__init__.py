"""Networks that several rooms use: build by name, load, import official weights. Importing this loads no torch."""

from toolkit.zoo.registry import (
    CLASSES,
    LAYOUTS,
    NAMED,
    PUBLISHED,
    Entry,
    Layout,
    build_on_meta,
    count_flops,
    count_parameters,
    import_weights,
    list_layouts,
    list_networks,
    list_published,
    load,
    show_network,
)

__all__ = [
    "CLASSES",
    "LAYOUTS",
    "NAMED",
    "PUBLISHED",
    "Entry",
    "Layout",
    "build_on_meta",
    "count_flops",
    "count_parameters",
    "import_weights",
    "list_layouts",
    "list_networks",
    "list_published",
    "load",
    "show_network",
]
