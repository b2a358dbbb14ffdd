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
        ContractError: they are the other kind, no numbers, or each a probability of its own, as sigmoids give.
    """
    if not np.isfinite(outputs).all():
        raise ContractError("the model's outputs for the golden tiles are not all numbers")
    sums = outputs.sum(axis=1)
    are_shares = bool((outputs >= -_SUM_ATOL).all() and (outputs <= 1 + _SUM_ATOL).all())
    are_probabilities = are_shares and bool((np.abs(sums - 1) <= _SUM_ATOL).all())
    if are_probabilities and stated == "logits":
        raise ContractError('the model\'s outputs add up to 1 already: state "output": "probabilities"')
    if are_shares and not are_probabilities:
        # As logits they would be accepted, and make a classifier that is never sure of anything.
        surest = np.e / (np.e + outputs.shape[1] - 1)
        raise ContractError(
            f"the model's outputs lie between 0 and 1 and add up to {sums.min():.3g} to {sums.max():.3g}, as "
            "independent (sigmoid) outputs do, which are not imported: classes must exclude each other, and a softmax "
            f"behind such outputs is never more than {surest:.0%} sure"
        )
    if not are_probabilities and stated == "probabilities":
        raise ContractError(
            f"the model's outputs are no probabilities, they add up to {sums.min():.3g} to {sums.max():.3g}: state "
            '"output": "logits" where a softmax is to follow'
        )
