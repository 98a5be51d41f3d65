"""Weights of an ONNX model stored in fewer bits; what is computed with them stays float32."""

from __future__ import annotations

from typing import Any

import numpy as np

SMALLEST = 1024  # numbers of a tensor that is worth it


def shrink(model: Any, weights: str) -> Any:
    """Store large tensors of an ``onnx.ModelProto``, which is changed, as ``weights`` says.

    'float16': rounded by 0.05 % at most. 'int8': 255 levels for each row of the first axis. Nodes
    in front turn them back to float32, which onnxruntime does once, when it loads the file.
    """
    if weights == "float32":
        return model
    from onnx import TensorProto, numpy_helper
    from onnx.helper import make_node

    kept, nodes = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALLEST:
            kept.append(tensor)
            continue
        name, stored = tensor.name, f"{tensor.name}_stored"
        if weights == "float16":
            limit = np.finfo(np.float16).max
            kept.append(numpy_helper.from_array(values.clip(-limit, limit).astype("f2"), stored))
            nodes.append(make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
            continue
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype("f4")
        kept.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), stored))
        kept.append(numpy_helper.from_array(scale, f"{name}_scale"))
        nodes.append(make_node("Cast", [stored], [f"{name}_levels"], to=TensorProto.FLOAT))
        nodes.append(make_node("Mul", [f"{name}_levels", f"{name}_scale"], [name]))
    everything = [*nodes, *model.graph.node]
    for field, content in ((model.graph.initializer, kept), (model.graph.node, everything)):
        del field[:]
        field.extend(content)
    return model
