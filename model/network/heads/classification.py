"""One label of several: softmax over all classes, full cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.heads.ranks import area_under_roc


class Classification:
    """Targets are class indices int64 [B]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; the published code's one-negative loss is not used."""
        return functional.cross_entropy(logits, targets)

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Class probabilities [B, K]."""
        return torch.softmax(logits / temperature, dim=-1)

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Accuracy, macro F1, and the area under the ROC curve of two classes."""
        predicted = logits.argmax(1)
        metrics = {
            "accuracy": (predicted == targets).float().mean().item(),
            "macro_f1": _macro_f1(predicted, targets, logits.shape[1]),
        }
        if logits.shape[1] == 2:
            metrics["auc"] = area_under_roc(logits[:, 1] - logits[:, 0], targets == 1)
        return metrics


def _macro_f1(predicted: Tensor, targets: Tensor, classes: int) -> float:
    hits = torch.bincount(targets[predicted == targets], minlength=classes).float()
    chosen = torch.bincount(predicted, minlength=classes).float()
    present = torch.bincount(targets, minlength=classes).float()
    f1 = 2 * hits / (chosen + present).clamp(min=1)
    return f1[(chosen + present) > 0].mean().item()
