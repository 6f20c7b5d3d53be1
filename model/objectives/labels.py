"""The checks that labelled kinds share."""

from collections import Counter
from collections.abc import Iterable

from model.data_errors import LabelSeenOnce, LabelUnknown, SplitEmpty
from model.examples import Examples
from model.objectives.objective import Rows


def learnable_labels(examples: Examples, train: Rows) -> tuple[str, ...]:
    """All labels in alphabetical order; refused if one cannot be both learned and checked."""
    counts = Counter(label for answer in examples.answers for label in answer)
    once = sorted(label for label, count in counts.items() if count == 1)
    if once:
        raise LabelSeenOnce(
            f"{_names(once)} seen with a single user, too few to learn and to check.",
            hint="Merge rare labels, or leave them out with --min-label-count 2.",
        )
    trained = {label for i in train.tolist() for label in examples.answers[i]}
    untrained = sorted(set(counts) - trained)
    if untrained:
        raise SplitEmpty(
            f"{_names(untrained)} not seen with any user of the training part.",
            hint="Leave rare labels out with --min-label-count, or choose another --seed.",
        )
    return tuple(sorted(counts))


def label_indices(outputs: tuple[str, ...]) -> dict[str, int]:
    """Row of the head for each label."""
    return {label: index for index, label in enumerate(outputs)}


def require_labels(found: Iterable[str], outputs: tuple[str, ...]) -> None:
    """Refuse labels that the head has no row for."""
    unknown = sorted(set(found) - set(outputs))
    if unknown:
        raise LabelUnknown(
            f"{_names(unknown)} not among the task's {len(outputs)} labels.",
            hint=f"The labels are {', '.join(outputs[:20])}.",
        )


def _names(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:5])
    if len(labels) == 1:
        return f"label {shown} is"
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"labels {shown}{more} are"
