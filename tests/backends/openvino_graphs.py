"""What OpenVINO graphs compute in integers, read from the graphs."""

from sdhub.backends.openvino import graph


def integer_products(model):
    """Layers whose inputs are rounded, by which OpenVINO multiplies integers."""
    return {layer for layer, operation in graph.layers(model).items() if source(operation) == "FakeQuantize"}


def source(operation):
    """The type of what an operation's input comes from, behind what only moves values."""
    node = operation.input_value(0).get_node()
    while graph.moves(node):
        node = node.input_value(0).get_node()
    return node.get_type_name()
