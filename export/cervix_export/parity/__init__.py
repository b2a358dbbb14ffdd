"""Three layers of parity, each with its own numbers, so that a fault names its place.

tile ──pixels──> batch ──graph──> model.onnx in FP32 ──artefact──> every file, backend and precision
digests of        Keras against     that graph against
training          the graph         each deployable combination
"""
