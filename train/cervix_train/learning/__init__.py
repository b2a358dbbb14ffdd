"""The network, its stages of training, and its calibration."""
