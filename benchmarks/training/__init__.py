"""The paper's protocol, cross-validation, and the drift that a training's tiles let a run see."""
