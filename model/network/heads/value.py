"""A number: mean squared error."""

from torch import Tensor
from torch.nn import functional


class Value:
    """Targets are floats [B, 1]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(logits, targets)

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """The number itself [B, 1]."""
        return logits

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Root mean squared and mean absolute error, and the share of variance explained."""
        error = logits - targets
        spread = (targets - targets.mean()).square().mean().item()
        squared = error.square().mean().item()
        return {
            "rmse": squared**0.5,
            "mae": error.abs().mean().item(),
            "r2": 1 - squared / max(spread, 1e-12),
        }
