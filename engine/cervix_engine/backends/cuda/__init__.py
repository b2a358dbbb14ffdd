"""What backends on NVIDIA GPUs share: lanes of pinned memory, streams, several GPUs by turns."""
