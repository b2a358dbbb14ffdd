"""Against what you would use instead: Keras, a plain loop, SPDL, `benchmark_app`; and an earlier version of this."""
