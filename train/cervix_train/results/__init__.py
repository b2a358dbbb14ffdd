"""How well a model does: metrics, intervals, plots, the page."""
