"""Graph -> TensorRT engine, with its fingerprint and the proof of its precision."""
