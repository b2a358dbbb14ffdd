"""Makes and evaluates the Keras models that bundles are exported from.

Importing this package loads nothing heavy: neither TensorFlow nor OpenCV.
"""
