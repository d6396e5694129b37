"""What every loss returns. It neither reduces nor logs: its caller knows what to divide by, and which name to log
under."""

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """A loss and what to watch beside it.

    Args:
        loss: One value for each thing the loss scores (a token, a list, a row), not reduced.
        metrics: From a name to a detached tensor of floats, not reduced either. A yes-or-no metric holds 1 or 0.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
