"""Frozen descriptions of the parts of a model, without torch, so that HTTP workers read them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from peterrec.model.errors import InvalidSpec
from peterrec.model.insertions import CONVS, INSERTIONS, Insertion, InsertionName
from peterrec.model.kinds import KINDS

PAD, UNK, CLS, MASK = 0, 1, 2, 3
"""Token ids of the embedding's first rows; the published code has one id for all four."""

FIRST_ITEM = 4
"""Token id of the vocabulary's first item."""

LONGEST_LABEL = 256
"""Most characters of a class or tag, which bundles and answers carry."""

MAX_HISTORY_ITEMS = 10_000
"""Most items of one history, so that no request keeps a worker busy for long."""

TABLE_BITS = (4, 8)
"""Bits that a weight of an item table may have in a bundle."""

Padding = Literal["exact", "embedded"]
Counting = Literal["presence", "count"]
HeadKind = str
"""Name of a kind of head: a key of ``KINDS``, checked by HeadSpec."""


def _require(is_valid: bool, message: str, hint: str = "") -> None:
    if not is_valid:
        raise InvalidSpec(message, hint=hint)


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Architecture of a NextItNet backbone (WSDM 2019), without the weights.

    ``padding`` is ``exact`` (padding does not change the answer) or ``embedded`` (histories are
    left-padded to ``max_len`` with PAD tokens that pass through the network, as in the published
    code; ``model/network/collate.py``). ``max_len`` counts items; ``[CLS]`` is extra.
    """

    item_count: int
    channels: int = 64
    dilations: tuple[int, ...] = (1, 4, 1, 4, 1, 4, 1, 4)
    kernel_size: int = 3
    is_causal: bool = True
    padding: Padding = "exact"
    max_len: int = 50
    layer_norm_eps: float = 1e-8

    def __post_init__(self) -> None:
        _require(self.item_count >= 1, f"item_count is {self.item_count}, at least 1 is needed.")
        _require(self.channels >= 1, f"channels is {self.channels}, at least 1 is needed.")
        _require(len(self.dilations) >= 1, "dilations is empty.", "Give one dilation per block.")
        _require(all(d >= 1 for d in self.dilations), f"dilations {self.dilations} must be >= 1.")
        _require(
            self.kernel_size >= 2 and (self.is_causal or self.kernel_size % 2 == 1),
            f"kernel_size {self.kernel_size} must be >= 2, and odd if the backbone is non-causal.",
        )
        _require(self.padding in ("exact", "embedded"), f"padding {self.padding!r} is unknown.")
        _require(self.max_len >= 1, f"max_len is {self.max_len}, at least 1 is needed.")
        _require(self.layer_norm_eps > 0, f"layer_norm_eps {self.layer_norm_eps} must be > 0.")

    @property
    def token_count(self) -> int:
        """Rows of the embedding: the special tokens and the items."""
        return FIRST_ITEM + self.item_count

    @property
    def conv_dilations(self) -> tuple[int, ...]:
        """Dilations of all convolutions, bottom to top: d and 2d for each block."""
        return tuple(d * factor for d in self.dilations for factor in (1, 2))

    @property
    def max_input_len(self) -> int:
        """Tokens of a full history: it ends in [CLS] and, if non-causal, begins with it too."""
        return self.input_len(self.max_len)

    def input_len(self, items: int) -> int:
        """Tokens of a history of ``items`` items, without padding."""
        return items + (1 if self.is_causal else 2)

    def to_json(self) -> dict[str, Any]:  # Any: a JSON document
        return {**asdict(self), "dilations": list(self.dilations)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:  # Any: a JSON document
        _require(isinstance(fields, dict), f"a backbone spec is an object, not {fields!r}.")
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(fields) - known)
        _require(not unknown, f"unknown backbone fields: {', '.join(unknown)}.")
        for name in ("item_count", "channels", "kernel_size", "max_len"):
            value = fields.get(name, 1)
            _require(type(value) is int, f"{name} is {value!r}, an integer is needed.")
        try:
            return cls(**{**fields, "dilations": tuple(fields.get("dilations", ()))})
        except TypeError as error:
            raise InvalidSpec(f"backbone spec: {error}.") from error


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Place and width of a task's patch (PeterRec section 3.3, figure 3).

    ``bottleneck`` is the folded width: the sum over the ``cardinality`` branches it was trained
    with. ``blocks`` are the patched residual blocks, ascending. ``has_inner_skip`` adds the source
    itself in the parallel insertion (``y = conv(x) + x + f(x)``), as in the published code. With
    ``queries`` > 0 the patch also has an item reader: this number of attention queries pool the
    history's items into a bottleneck of the same width (``model/network/history_reader.py``).
    """

    insertion: InsertionName
    bottleneck: int
    blocks: tuple[int, ...]
    cardinality: int = 1
    has_inner_skip: bool = False
    has_norms: bool = False
    has_cls: bool = False
    queries: int = 0

    def __post_init__(self) -> None:
        _require(self.insertion in INSERTIONS, f"insertion {self.insertion!r} is unknown.")
        _require(self.bottleneck >= 1, f"bottleneck is {self.bottleneck}, at least 1 is needed.")
        _require(
            self.cardinality >= 1 and self.bottleneck % self.cardinality == 0,
            f"bottleneck {self.bottleneck} is not a multiple of cardinality {self.cardinality}.",
        )
        ascending = all(a < b for a, b in zip(self.blocks, self.blocks[1:], strict=False))
        _require(ascending, f"blocks {self.blocks} are not ascending.")
        _require(all(b >= 0 for b in self.blocks), f"blocks {self.blocks} must be >= 0.")
        _require(
            not self.has_inner_skip or self.record.may_skip,
            "has_inner_skip belongs to the parallel insertion only.",
        )
        _require(self.queries >= 0, f"queries is {self.queries}, at least 0 is needed.")

    @property
    def record(self) -> Insertion:
        """The record of the insertion."""
        return INSERTIONS[self.insertion]

    @property
    def kernel_mode(self) -> int:
        """How kernels compute a patched convolution, in bits (``model/insertions.py``)."""
        return self.record.kernel_mode(self.has_inner_skip)

    @property
    def patched_convs(self) -> int:
        """Number of bottlenecks, P in the tensors' shapes."""
        return self.record.convs_per_block * len(self.blocks)

    def conv_index(self, block: int, conv: int) -> int | None:
        """Index in the stacked tensors of the bottleneck at ``conv`` (0 or 1) of ``block``."""
        if block not in self.blocks:
            return None
        per_block = self.record.convs_per_block
        at = conv - (CONVS - per_block)
        return None if at < 0 else self.blocks.index(block) * per_block + at

    def norm_index(self, block: int, conv: int) -> int | None:
        """Index in the stacked norms of the LayerNorm after ``conv`` of ``block``, if trained."""
        is_trained = self.has_norms and conv == 1 and block in self.blocks
        return self.blocks.index(block) if is_trained else None

    def shapes(self, channels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the stacked tensors by name (``patch.`` names of a bundle)."""
        p, c, h = self.patched_convs, channels, self.bottleneck
        shapes: dict[str, tuple[int, ...]] = {
            "patch.down": (p, c, h),
            "patch.down_bias": (p, h),
            "patch.up": (p, h, c),
            "patch.up_bias": (p, c),
        }
        if self.has_norms:
            shapes |= {"patch.norm_weight": (len(self.blocks), c)}
            shapes |= {"patch.norm_bias": (len(self.blocks), c)}
        if self.has_cls:
            shapes["patch.cls"] = (c,)
        if self.queries:
            shapes |= {"patch.query": (c, self.queries)}
            shapes |= {"patch.read_down": (self.queries * c, h), "patch.read_down_bias": (h,)}
            shapes |= {"patch.read_up": (h, c), "patch.read_up_bias": (c,)}
        return shapes


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A task's output layer: ``logits = u W^T + b`` with ``outputs`` rows, decoded by kind."""

    kind: HeadKind
    outputs: int
    has_bias: bool = True

    def __post_init__(self) -> None:
        _require(
            self.kind in KINDS,
            f"head kind {self.kind!r} is unknown.",
            f"The kinds are {', '.join(KINDS)}.",
        )
        _require(self.outputs >= 1, f"a head needs at least 1 output, not {self.outputs}.")
        is_number = KINDS[self.kind].outputs == "number"
        _require(not is_number or self.outputs == 1, f"a {self.kind} head has exactly one output.")

    def shapes(self, channels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the head's tensors by name."""
        shapes: dict[str, tuple[int, ...]] = {"head.weight": (self.outputs, channels)}
        if self.has_bias:
            shapes["head.bias"] = (self.outputs,)
        return shapes


@dataclass(frozen=True, slots=True)
class TableSpec:
    """Form of a task's item table: one small integer per item and output, and how they are summed.

    ``items`` is the number of items that have a row; all others add nothing. ``bits`` is the size
    of a stored weight. ``counting`` says whether an item that a history has several times counts
    once (``presence``) or each time (``count``). The sum over a history of n counted items is
    divided by ``n ** exponent`` (``model/network/item_table.py``).
    """

    items: int
    bits: int = 8
    counting: Counting = "presence"
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _require(self.items >= 1, f"an item table has {self.items} items, at least 1 is needed.")
        _require(self.bits in TABLE_BITS, f"bits is {self.bits}, an item table has 4 or 8.")
        _require(self.counting in ("presence", "count"), f"counting {self.counting!r} is unknown.")
        _require(0 <= self.exponent <= 1, f"exponent is {self.exponent}, 0 to 1 is allowed.")

    @property
    def largest(self) -> int:
        """The largest size of a weight's integer; the range is symmetric: ±127 or ±7."""
        return (1 << (self.bits - 1)) - 1

    def row_bytes(self, outputs: int) -> int:
        """Bytes of an item's row in a bundle; two weights of four bits share a byte."""
        return (outputs * self.bits + 7) // 8

    def shapes(self, outputs: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored tensors by name (``table.`` names of a bundle)."""
        return {
            "table.items": (self.items,),
            "table.weight": (self.items, self.row_bytes(outputs)),
            "table.scale": (outputs,),
        }


def vocabulary_digest(items: list[str]) -> str:
    """sha256 of the ordered item vocabulary; another order gives another digest."""
    return hashlib.sha256(json.dumps(items, ensure_ascii=False).encode()).hexdigest()
