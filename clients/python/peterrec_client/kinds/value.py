"""Answers of value tasks."""

from peterrec_client.kinds.prediction import Prediction


class ValuePrediction(Prediction, frozen=True, kw_only=True, tag="value"):
    """A number, in the unit of the task's training targets; ``unit`` is its name, if it has one."""

    value: float
    unit: str | None = None


KIND = ValuePrediction
