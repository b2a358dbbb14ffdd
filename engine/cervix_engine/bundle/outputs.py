"""Whether what an imported model gives is what is stated of it: logits, or probabilities."""

from __future__ import annotations

import numpy as np

from cervix_engine.bundle.imported import Output
from cervix_engine.errors import ContractError
from cervix_engine.values import Probabilities

# A softmax in another precision leaves sums this far from 1, at most.
_SUM_ATOL = 1e-3


def check_outputs(outputs: Probabilities, *, stated: Output) -> None:
    """Check the kind of a model's own outputs, before any softmax that is put behind it.

    Args:
        outputs: of some tiles, `float32 (N, classes)`.
        stated: what they are said to be.

    Raises:
        ContractError: they are the other kind, or no numbers.
    """
    if not np.isfinite(outputs).all():
        raise ContractError("the model's outputs for the golden tiles are not all numbers")
    sums = outputs.sum(axis=1)
    are_probabilities = bool((outputs >= -_SUM_ATOL).all() and (np.abs(sums - 1) <= _SUM_ATOL).all())
    if are_probabilities and stated == "logits":
        raise ContractError('the model\'s outputs add up to 1 already: state "output": "probabilities"')
    if not are_probabilities and stated == "probabilities":
        raise ContractError(
            f"the model's outputs are no probabilities, they add up to {sums.min():.3g} to {sums.max():.3g}: state "
            '"output": "logits" where a softmax is to follow'
        )
