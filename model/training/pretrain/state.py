"""Everything that changes while a backbone is pretrained, and its checkpoint on disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.disk import refusals, require_space
from peterrec.model.documents import Document
from peterrec.model.errors import CheckpointMismatch, TensorFileInvalid
from peterrec.model.files.tensors import bytes_of, read_tensors, write_tensors
from peterrec.model.network.backbone import Backbone
from peterrec.model.training.data_parallel import Workers
from peterrec.model.training.loop import EpochRecord, Epochs, backward
from peterrec.model.training.pretrain.lazy_rows import LazyRows
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.model.training.softmax import OutputLayer

CHECKPOINT = "checkpoint.safetensors"

MODEL, BEST, ADAM, JOURNAL = "model.", "best.", "adam.", "journal"


class PretrainingState(nn.Module):
    """Backbone, output layer, Adam's moments, the epochs so far and the best weights so far."""

    def __init__(self, backbone: Backbone, output: OutputLayer, settings: PretrainSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = output
        rate = settings.learning_rate
        self.optimizer = torch.optim.Adam(self.parameters(), lr=rate, fused=True)
        self.epochs = Epochs(self, settings.epochs, settings.patience)

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        return self.output.bias.device

    def backward(self, loss: Tensor, tables: Sequence[LazyRows], workers: Workers) -> None:
        """Compute the loss's gradients, added up over all workers, for a step of Adam."""
        self.optimizer.zero_grad()
        backward(loss)
        lazy = {id(rows.table) for rows in tables}
        dense = [parameter for parameter in self.parameters() if id(parameter) not in lazy]
        for tensor in (*dense, *(rows.weight for rows in tables)):
            if tensor.grad is None:  # this worker has no row of the batch
                tensor.grad = torch.zeros_like(tensor)
        grads = (tensor.grad for tensor in (*dense, *(rows.weight for rows in tables)))
        workers.add_up([grad for grad in grads if grad is not None])

    def step(self, tables: Sequence[LazyRows]) -> None:
        """Make one step of Adam on all parameters with gradients, and on the tables' rows."""
        self.optimizer.step()
        for rows in tables:
            rows.update(self.optimizer)


def save_checkpoint(folder: Path, state: PretrainingState, identity: Document) -> None:
    """Write one file, whole or not at all; ``identity`` must be equal in a resumed run."""
    epochs = [asdict(record) for record in state.epochs.records]
    journal = json.dumps({"identity": identity, "epochs": epochs})
    tensors = {MODEL + name: tensor for name, tensor in state.state_dict().items()}
    tensors |= {BEST + name: tensor for name, tensor in state.epochs.best_weights.items()}
    tensors |= {ADAM + name: tensor for name, tensor in _moments(state).items()}
    # The journal is stored as bytes in the tensor file, so that the two can never disagree.
    tensors[JOURNAL] = torch.from_numpy(np.frombuffer(journal.encode(), dtype=np.uint8).copy())
    write_tensors(folder / CHECKPOINT, tensors)


def restore_checkpoint(folder: Path, state: PretrainingState, identity: Document) -> bool:
    """Continue from the folder's checkpoint; False if there is none."""
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    tensors = read_tensors(path)
    journal = _journal(path, tensors)
    _require_same(path, journal["identity"], identity)
    state.load_state_dict(_below(tensors, MODEL))
    state.epochs.best_weights = _below(tensors, BEST)
    state.epochs.records = [EpochRecord(**record) for record in journal["epochs"]]
    for name, parameter in state.named_parameters():
        moments = _below(tensors, f"{ADAM}{name}:")
        state.optimizer.state[parameter] = {k: t.to(parameter.device) for k, t in moments.items()}
    return True


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a finished run."""
    with refusals(folder / CHECKPOINT, doing="removed"):
        (folder / CHECKPOINT).unlink(missing_ok=True)


def require_room(folder: Path, state: PretrainingState) -> None:
    """Refuse a file system without room for two checkpoints: a new one is written beside the old.

    A checkpoint has each parameter four times: now, at its best, and Adam's two moments.
    """
    size = 4 * bytes_of(state.state_dict())
    count = 1 if (folder / CHECKPOINT).exists() else 2
    require_space(folder, count * size, largest_file=size)


def _journal(path: Path, tensors: dict[str, Tensor]) -> Document:
    """Take the settings and epochs of a checkpoint out of its tensors."""
    try:
        journal: Document = json.loads(tensors.pop(JOURNAL).numpy().tobytes())
    except (KeyError, ValueError) as error:
        raise TensorFileInvalid(
            f"{path} is not the checkpoint of a pretraining.", hint="Start anew with `overwrite`."
        ) from error
    return journal


def _moments(state: PretrainingState) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value
        for name, parameter in state.named_parameters()
        for key, value in state.optimizer.state[parameter].items()
    }


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _require_same(path: Path, found: Document, given: Document) -> None:
    differing = [key for key in {**found, **given} if found.get(key) != given.get(key)]
    if differing:
        changes = ", ".join(f"{key} {found.get(key)!r} → {given.get(key)!r}" for key in differing)
        raise CheckpointMismatch(
            f"{path} belongs to a run with other settings or data: {changes}.",
            hint="Repeat the first run's options. To start anew, give `overwrite`.",
        )
