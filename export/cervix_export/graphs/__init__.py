"""Keras model -> FP32 graph -> FP16 and INT8 graphs, and the proof of their precision."""
