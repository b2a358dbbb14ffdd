"""FP32 graph -> INT8 graph: where its numbers are rounded, how far, and what that costs."""

from cervix_export.graphs.int8.make import Int8Record, int8_from_onnx

__all__ = ["Int8Record", "int8_from_onnx"]
