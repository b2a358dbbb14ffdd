"""Makes deployable bundles of Keras models and certifies them.

cli_export.py          the command `cervix-export`
export.py              one export: convert, certify, publish
convert.py             Keras -> ONNX, the checking side
_keras_to_onnx.py      Keras -> ONNX, the side that opens the Keras file, in a process of its own
half.py                FP32 graph -> FP16 graph
precision_proof.py     what share of a graph's arithmetic is done in half precision
certify.py             how far a combination's answers are from Keras's
engines.py             whether a TensorRT engine is made, and for what
cli_engine.py          the options that say so
engine_builder.py      graph -> TensorRT engine with its fingerprint, also without a GPU
engine_proof.py        in what precision an engine will compute, read from the parsed network
timing_cache.py        TensorRT's measured kernel times, kept between builds
publish.py             puts finished files into a bundle
"""
