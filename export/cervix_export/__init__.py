"""Makes bundles deployable: graphs from Keras, then engines and certificates for the machine at hand.

export.py       one export, in its two halves
graphs/         the first: Keras model -> FP32, FP16 and INT8 graphs, each proven to be what it is called
engines/        the second: graph -> TensorRT engine with its fingerprint, also without a GPU
certify.py      how far a combination's answers are from Keras's, on the golden tiles
publish.py      puts finished files into a bundle, beside what other machines made
triton.py       a model repository of what is certified, for Triton Inference Server
parity/         compares a bundle with Keras in three layers, so that a fault names its place
cli/            the commands `cervix-export` and `cervix-parity`
"""
