"""Checks our network against a folder of recorded numbers of the published code.

Format and equations: docs/reference-parity.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from peterrec.model.disk import matching_files
from peterrec.model.errors import GoldenCaseInvalid, GoldenFolderInvalid, PeterRecError
from peterrec.model.parity.case import (
    AFTER,
    GRADIENT,
    LOSS_CURVE,
    AdamSettings,
    GoldenCase,
    describe,
    read_case,
)
from peterrec.model.parity.network import (
    FORWARD,
    INPUTS,
    RANKINGS,
    GoldenNetwork,
    build_network,
    training_loss,
)
from peterrec.model.parity.tf_adam import ReferenceAdam
from peterrec.model.progress import OnProgress, Progress, no_progress

TOLERANCE = 1e-4
TOLERANCES = {LOSS_CURVE: 1e-3, "after": 1e-3, "top5": 0.0, "frozen": 0.0}
"""Largest allowed relative error by kind of quantity; others have ``TOLERANCE``."""

SMALLEST_GRADIENT = 1e-5
"""Gradients below this are rounding noise, which decides their sign and so early Adam steps."""

SMALLEST_SCALE = 1e-8
"""Lower bound of the recorded magnitude that errors are divided by."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One recorded array, and our largest error relative to its largest number."""

    name: str
    error: float

    @property
    def kind(self) -> str:
        """The array's kind, for example ``hidden`` of ``in0_hidden`` or ``grad`` of ``grad:x``."""
        name, is_variable, _ = self.name.partition(":")
        if is_variable or not name.startswith("in"):
            return name
        kind = name.partition("_")[2]
        return "top5" if kind.endswith("top5") else kind

    @property
    def tolerance(self) -> float:
        return TOLERANCES.get(self.kind, TOLERANCE)

    @property
    def is_met(self) -> bool:
        return self.error <= self.tolerance  # never true of NaN


@dataclass(frozen=True, slots=True)
class CaseReport:
    """A case's quantities, or the problem because of which it could not be run."""

    case: str
    quantities: tuple[Quantity, ...] = ()
    problem: str = ""
    unchecked: tuple[str, ...] = ()

    @property
    def misses(self) -> list[Quantity]:
        return [quantity for quantity in self.quantities if not quantity.is_met]

    @property
    def is_met(self) -> bool:
        return not self.problem and not self.misses


def check_folder(folder: Path, on_progress: OnProgress = no_progress) -> Iterator[CaseReport]:
    """Check every case of a folder; the reports come one after the other."""
    paths = matching_files(folder, "case_*.npz")
    if not paths:
        raise GoldenFolderInvalid(
            f"{folder} has no case_*.npz file.", hint="Give a folder of recorded cases."
        )
    _require_whole(folder, {path.stem.removeprefix("case_") for path in paths})
    return _reports(paths, on_progress)


def _reports(paths: list[Path], on_progress: OnProgress) -> Iterator[CaseReport]:
    for done, path in enumerate(paths):
        on_progress(Progress("checking", done, len(paths), path.stem, "cases"))
        yield _report(path)
    on_progress(Progress("checking", len(paths), len(paths), unit="cases"))


def _require_whole(folder: Path, cases: set[str]) -> None:
    owners = {f.stem.removeprefix("patch_"): f.name for f in folder.glob("patch_*.safetensors")}
    for file in folder.glob("weights_*_extra.safetensors"):
        owners[file.stem.removeprefix("weights_").removesuffix("_extra")] = file.name
    lost = [f"case_{name}.npz (of {file})" for name, file in owners.items() if name not in cases]
    if lost:
        raise GoldenFolderInvalid(f"{folder} lacks {', '.join(sorted(lost))}.")


def _report(path: Path) -> CaseReport:
    name = path.stem.removeprefix("case_")
    try:
        case = read_case(path)
        quantities = check_case(case, path.parent)
    except PeterRecError as error:
        return CaseReport(name, problem=error.message)
    asked = {f"in{n}_{array}" for n in case.inputs for array in INPUTS[case.meta.kind]}
    unchecked = set(case.arrays) - asked - {quantity.name for quantity in quantities}
    return CaseReport(name, tuple(quantities), unchecked=tuple(sorted(unchecked)))


def check_case(case: GoldenCase, folder: Path) -> list[Quantity]:
    """Check every recorded quantity of a case: forward in float32, training in float64."""
    network = build_network(case, folder)
    return [*_check_forward(network, case), *_check_training(network, case)]


def _check_forward(network: GoldenNetwork, case: GoldenCase) -> Iterator[Quantity]:
    for number in case.inputs:
        with torch.no_grad():
            outputs = FORWARD[case.meta.kind](network, case, number)
        for name, found in outputs.items():
            array = f"in{number}_{name}"
            yield Quantity(array, relative_error(array, found, case.array(array)))
        for name, ranked in RANKINGS[case.meta.kind].items():
            array = f"in{number}_{name}"
            recorded = case.array(f"in{number}_{ranked}")
            error = order_error(array, outputs[ranked], recorded, case.array(array))
            yield Quantity(array, error)


def _check_training(network: GoldenNetwork, case: GoldenCase) -> Iterator[Quantity]:
    _require_training_arrays(network, case)
    gradients = case.variables(GRADIENT)
    if not gradients:
        return
    network.widen()
    torch.autograd.backward(training_loss(network, case))
    found = {name: binding.gradient().clone() for name, binding in network.bindings.items()}
    for name in gradients:
        array = GRADIENT + name
        yield Quantity(array, relative_error(array, found[name], case.array(array)))
    if case.meta.adam is not None:
        yield from _check_adam(network, case, case.meta.adam)


def _require_training_arrays(network: GoldenNetwork, case: GoldenCase) -> None:
    """Refuse a recorded training run without its curve, or with variables that do not match."""
    gradients, after = case.variables(GRADIENT), case.variables(AFTER)
    unknown = [name for name in (*gradients, *after) if name not in network.bindings]
    if unknown:
        raise GoldenCaseInvalid(f"{', '.join(unknown)} are not variables of the network.")
    if case.meta.adam is None:
        return
    lost = [GRADIENT + name for name in after if name not in gradients]
    lost += [AFTER + name for name in gradients if name not in after]
    if lost or not gradients:
        raise GoldenCaseInvalid(f"arrays {', '.join(lost) or 'grad:…, after:…'} are missing.")
    case.array(LOSS_CURVE)


def _check_adam(
    network: GoldenNetwork, case: GoldenCase, settings: AdamSettings
) -> Iterator[Quantity]:
    frozen = _frozen(network)
    before = [parameter.detach().clone() for parameter in frozen]
    losses = train(network, case, settings)
    yield Quantity(LOSS_CURVE, relative_error(LOSS_CURVE, losses, case.array(LOSS_CURVE)))
    for name in case.variables(AFTER):
        array = AFTER + name
        is_signal = case.array(GRADIENT + name).abs() > SMALLEST_GRADIENT
        value = network.bindings[name].value()
        yield Quantity(array, relative_error(array, value, case.array(array), is_signal))
    if frozen:
        kept = all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
        yield Quantity("frozen", 0.0 if kept else math.inf)


def _frozen(network: GoldenNetwork) -> list[nn.Parameter]:
    trained = {id(parameter) for parameter in network.trained}
    everything = [network.table, *network.backbone.parameters()]
    is_frozen = network.patch is not None
    return [p for p in everything if id(p) not in trained] if is_frozen else []


def train(network: GoldenNetwork, case: GoldenCase, settings: AdamSettings) -> Tensor:
    """Train as recorded; losses [steps + 1] before each Adam step and after the last one."""
    optimizer = ReferenceAdam(network.trained, settings)
    losses = []
    for _ in range(settings.steps):
        optimizer.clear()
        loss = training_loss(network, case)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        losses.append(training_loss(network, case))
    return torch.stack(losses)


def relative_error(
    name: str, found: Tensor, recorded: Tensor, where: Tensor | None = None
) -> float:
    """The largest difference divided by the largest recorded magnitude, of entries ``where``."""
    if found.shape != recorded.shape or not recorded.is_floating_point():
        raise GoldenCaseInvalid(
            f"array {name} is {describe(recorded)}, the network gives {describe(found)}."
        )
    difference = (found.double() - recorded).abs()
    if where is not None:
        difference = difference[where]
    if difference.numel() == 0:
        return 0.0
    scale = max(recorded.abs().max().item(), SMALLEST_SCALE)
    return difference.max().item() / scale


def order_error(name: str, scores: Tensor, recorded_scores: Tensor, recorded: Tensor) -> float:
    """The share of the recorded best indices [B, k] that ours differ from.

    Equal scores keep index order. Two indices may change places if their recorded scores are
    closer than twice the largest difference between our scores and the recorded ones.
    """
    choices = scores.shape[1]
    is_table = recorded.dim() == 2 and len(recorded) == len(scores) and recorded.numel() > 0
    if recorded.is_floating_point() or not is_table or recorded.shape[1] > choices:
        raise GoldenCaseInvalid(f"array {name} is not a table of indices: {describe(recorded)}.")
    if recorded.min() < 0 or recorded.max() >= choices:
        raise GoldenCaseInvalid(f"array {name} holds indices outside 0 … {choices - 1}.")
    _, ours = top_items(scores, recorded.shape[1])
    noise = (scores - recorded_scores).abs().max()
    gap = (recorded_scores.gather(1, ours) - recorded_scores.gather(1, recorded)).abs()
    ties = scores.gather(1, ours) == scores.gather(1, recorded)
    wrong = (ours != recorded) & (ties | (gap > 2 * noise))
    return wrong.float().mean().item()


def top_items(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and catalog indices [B, count] of the best items; of equal scores the lower index."""
    order = torch.sort(logits, dim=1, descending=True, stable=True)
    return order.values[:, :count], order.indices[:, :count]
