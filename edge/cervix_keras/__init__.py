"""The one place where Keras models are loaded, checked and converted, for training and export alike.

start.py        Keras on TensorFlow, quiet and reproducible
settings.py     the settings that Keras and its libraries have on every machine
model_file.py   which model and weight files are opened, and how
graph.py        a Keras model as an ONNX graph, and what a graph has to keep to
jobs.py         what an export asks of a bundle's Keras model, each in a process of its own
_jobs.py        that process's side

Importing this package loads nothing heavy: neither TensorFlow nor OpenCV.
"""
