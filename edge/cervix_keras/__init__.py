"""The one place where Keras models are loaded, checked and converted, for training and export alike.

Importing this package loads nothing heavy: neither TensorFlow nor OpenCV.
"""
