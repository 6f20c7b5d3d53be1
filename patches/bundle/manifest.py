"""The manifest of a bundle: what the bundle is, which backbone it fits and where it comes from."""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from peterrec.model.errors import InvalidSpec
from peterrec.model.insertions import InsertionName
from peterrec.model.kinds import KINDS, Kind
from peterrec.model.kinds.value import LARGEST, ValueScale
from peterrec.model.spec import (
    CLS,
    LONGEST_LABEL,
    MASK,
    MAX_HISTORY_ITEMS,
    PAD,
    UNK,
    BackboneSpec,
    Counting,
    HeadKind,
    HeadSpec,
    Padding,
    PatchGeometry,
    TableSpec,
)
from peterrec.patches.bundle.format import SCHEMA, compact_json, parse_json
from peterrec.patches.errors import Findings, ReasonCode
from peterrec.patches.identity import NAME_PATTERN

_SCHEMA_FAMILY = SCHEMA.partition("/")[0] + "/"

MAX_PROBES = 256
"""Most probe histories that a bundle may carry."""

MAX_PROBE_COLUMNS = 4096
"""Most outputs whose logits a bundle may record for each probe."""

MAX_ATTRIBUTES = 32
"""Most attributes that a catalog may have."""

LONGEST_ATTRIBUTE = 64
"""Characters of the longest name of an attribute."""

MOST_NOTES = 4096
"""Most characters of a provenance's notes."""

MOST_BOUNDS = 31
"""Most bounds between groups of scores that a prior may have."""

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(min_length=1, max_length=LONGEST_LABEL)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
AttributeName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_ATTRIBUTE, pattern=r"^[^\x00-\x1f\x7f]+$")
]
AttributeType = Literal["text", "number", "time"]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        cache_strings="keys",  # "all" would keep the names of thousands of bundles in memory
    )


class ManifestInput(_Part):
    """How the trainer turned histories into tokens; the server must do it in the same way."""

    max_len: Count
    padding: Padding
    is_causal: bool
    pad_id: Index = PAD
    unk_id: Index = UNK
    cls_id: Index = CLS
    mask_id: Index = MASK

    @classmethod
    def of(cls, spec: BackboneSpec) -> Self:
        """Return the input settings of a backbone."""
        return cls(max_len=spec.max_len, padding=spec.padding, is_causal=spec.is_causal)


class ManifestPatch(_Part):
    """Where the patch sits and what it holds: the fields of PatchGeometry."""

    insertion: InsertionName
    bottleneck: Count
    blocks: tuple[Index, ...] = Field(fail_fast=True)
    cardinality: Count = 1
    has_inner_skip: bool = False
    has_norms: bool = False
    has_cls: bool = False
    queries: Index = 0

    @classmethod
    def of(cls, geometry: PatchGeometry) -> Self:
        """Convert a geometry into the manifest's form."""
        return cls(**{name: getattr(geometry, name) for name in cls.model_fields})

    def geometry(self) -> PatchGeometry:
        """Convert this part into the model's form."""
        return PatchGeometry(**self.model_dump())

    @model_validator(mode="after")
    def _is_a_geometry(self) -> Self:
        try:
            self.geometry()
        except InvalidSpec as error:
            raise ValueError(error.message) from error
        return self


class ManifestHead(_Part):
    """The head: its shape, and how its outputs are named and scaled.

    Logits are divided by ``temperature`` before they are decoded. ``threshold`` is the probability
    from which a tag counts as present. ``scale`` and ``shift`` are those of ``ValueScale``; they
    are written only where they change something, as older readers do not know them. ``unit`` says
    what a number counts, such as days. ``title_bytes`` is the size of the outputs' display names, 0
    if they have none.
    """

    kind: HeadKind
    outputs: Count
    has_bias: bool = True
    labels: tuple[Label, ...] | None = Field(default=None, fail_fast=True)
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)
    unit: Label | None = Field(default=None, exclude_if=lambda unit: unit is None)
    title_bytes: Index = Field(default=0, exclude_if=lambda size: size == 0)
    scale: float = Field(default=1.0, gt=0.0, le=LARGEST, exclude_if=lambda scale: scale == 1.0)
    shift: float = Field(
        default=0.0, ge=-LARGEST, le=LARGEST, exclude_if=lambda shift: shift == 0.0
    )

    @property
    def value_scale(self) -> ValueScale:
        """The line from the logit to the answer of a value task."""
        return ValueScale(self.scale, self.shift)

    def spec(self) -> HeadSpec:
        """Convert this part into the model's form."""
        return HeadSpec(self.kind, self.outputs, self.has_bias)

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: HeadKind) -> HeadKind:
        if kind not in KINDS:
            raise ValueError(f"should be one of {', '.join(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _is_a_head(self) -> Self:
        try:
            self.spec()
        except InvalidSpec as error:
            raise ValueError(error.message) from error
        if KINDS[self.kind].outputs != "number" and self.value_scale != ValueScale():
            raise ValueError(f"a {self.kind} head has neither scale nor shift")
        problem = self._label_problem()
        if problem:
            raise PydanticCustomError("labels_mismatch", "{problem}", {"problem": problem})
        if self.unit is not None and KINDS[self.kind].outputs != "number":
            raise ValueError(f"a {self.kind} head has no unit")
        if self.title_bytes and KINDS[self.kind].outputs == "number":
            raise ValueError(f"a {self.kind} head has no titles")
        return self

    def _label_problem(self) -> str | None:
        if not KINDS[self.kind].has_labels:
            return None if self.labels is None else f"a {self.kind} head has no labels"
        if self.labels is None:
            return f"a {self.kind} head needs one label per output"
        if len(self.labels) != self.outputs:
            return f"{len(self.labels)} labels for {self.outputs} outputs"
        twice = sorted(label for label, times in Counter(self.labels).items() if times > 1)
        return f"labels occur twice: {', '.join(twice[:5])}" if twice else None


class ManifestTable(_Part):
    """The form of the item table: the fields of TableSpec."""

    items: Count
    bits: int = 8
    counting: Counting = "presence"
    exponent: float = 0.5

    @classmethod
    def of(cls, spec: TableSpec) -> Self:
        """Convert a spec into the manifest's form."""
        return cls(**{name: getattr(spec, name) for name in cls.model_fields})

    def spec(self) -> TableSpec:
        """Convert this part into the model's form."""
        return TableSpec(**self.model_dump())

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        try:
            self.spec()
        except InvalidSpec as error:
            raise ValueError(error.message) from error
        return self


class ManifestAttribute(_Part):
    """What the values of one attribute of a catalog's items are; an item of a list has several."""

    type: AttributeType
    is_list: bool = False

    @model_validator(mode="after")
    def _is_a_list_of_texts(self) -> Self:
        if self.is_list and self.type != "text":
            raise ValueError(f"only texts may be in lists, not a {self.type}")
        return self


class ManifestProbes(_Part):
    """The number of histories with known logits, and of outputs recorded for each of them.

    ``length`` is the size of the histories' rows where it is not the backbone's ``max_len``.
    """

    count: int = Field(ge=1, le=MAX_PROBES)
    columns: int = Field(ge=1, le=MAX_PROBE_COLUMNS)
    length: Annotated[int, Field(ge=1, le=MAX_HISTORY_ITEMS)] | None = Field(
        default=None, exclude_if=lambda length: length is None
    )


class ManifestPrior(_Part):
    """How the bundle's answers were distributed over users that its training held out.

    ``outputs`` counts, for each label, the users whom the answer gave it; empty if the outputs have
    no labels. ``bounds`` divide the scores of answers (of the best output, or the number itself),
    and ``scores`` counts the users below, between and from them on.
    """

    users: Count
    outputs: tuple[Index, ...] = Field(default=(), fail_fast=True)
    bounds: tuple[float, ...] = Field(default=(), max_length=MOST_BOUNDS, fail_fast=True)
    scores: tuple[Index, ...] = Field(default=(), max_length=MOST_BOUNDS + 1, fail_fast=True)

    @model_validator(mode="after")
    def _counts_its_users(self) -> Self:
        if any(low >= high for low, high in pairwise(self.bounds)):
            raise ValueError("the bounds of scores do not ascend")
        if len(self.scores) != len(self.bounds) + 1 or sum(self.scores) != self.users:
            raise ValueError("scores should count every user between the bounds")
        return self


class Provenance(_Part):
    """Where the weights come from."""

    data_digest: str = Field(min_length=1, max_length=128)
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    software: str = Field(min_length=1, max_length=128)
    created_at: AwareDatetime
    notes: str | None = Field(default=None, max_length=MOST_NOTES)


class Manifest(_Part):
    """Everything that a bundle holds apart from its tensors (``docs/bundle-format.md``).

    ``table``, ``attributes`` and ``prior`` are left out of bundles without an item table, without
    attributes of their items or without a prior, as older readers do not know them.
    """

    schema_id: Literal["peterrec.bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: str = Field(pattern=NAME_PATTERN)
    backbone: Hex64
    input: ManifestInput
    patch: ManifestPatch
    head: ManifestHead
    table: ManifestTable | None = Field(default=None, exclude_if=lambda table: table is None)
    attributes: dict[AttributeName, ManifestAttribute] = Field(
        default_factory=dict, max_length=MAX_ATTRIBUTES, exclude_if=lambda found: not found
    )
    probes: ManifestProbes
    metrics: dict[Label, float] = Field(default_factory=dict)
    prior: ManifestPrior | None = Field(default=None, exclude_if=lambda prior: prior is None)
    provenance: Provenance

    @property
    def kind(self) -> HeadKind:
        """The kind of the head, which is also the kind of the bundle."""
        return self.head.kind

    @property
    def described_kind(self) -> Kind:
        """What that kind of head is."""
        return KINDS[self.kind]

    @property
    def probe_length(self) -> int:
        """Items in a row of the probes' histories."""
        return self.probes.length or self.input.max_len

    @model_validator(mode="after")
    def _has_a_sensible_table(self) -> Self:
        if self.table is None and self.probes.length is not None:
            raise ValueError("only probes of an item table have a length")
        if self.table is not None and self.probe_length <= self.input.max_len:
            raise ValueError("probes of an item table must be longer than max_len")
        return self

    @model_validator(mode="after")
    def _has_a_prior_of_its_outputs(self) -> Self:
        if self.prior is None or not self.prior.outputs:
            return self
        if not self.described_kind.has_labels or len(self.prior.outputs) != self.head.outputs:
            raise ValueError("the prior should count each label of the head, or none")
        return self

    @model_validator(mode="after")
    def _has_items_with_attributes(self) -> Self:
        if self.attributes and not self.described_kind.has_catalog:
            raise ValueError(f"a {self.kind} task has no items with attributes")
        return self

    def to_json(self) -> str:
        """Encode in the canonical form, so that equal manifests give equal bytes."""
        return compact_json(self.model_dump(mode="json", by_alias=True), sort_keys=True)


def parse_manifest(text: str, findings: Findings) -> Manifest | None:
    """Parse a manifest; return None and add every problem to ``findings`` if it is not valid."""
    if not _is_known_schema(text, findings):
        return None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            _note(problem, findings)
        return None


def _is_known_schema(text: str, findings: Findings) -> bool:
    try:
        document = parse_json(text.encode())
    except ValueError as error:
        findings.add(ReasonCode.MANIFEST_INVALID, f"the manifest is not JSON: {error}")
        return False
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == SCHEMA:
        return True
    if isinstance(schema, str) and schema.startswith(_SCHEMA_FAMILY):
        findings.add(
            ReasonCode.SCHEMA_UNSUPPORTED,
            f"the manifest's schema is {schema[:64]!r}, this server reads {SCHEMA!r}",
            "Update the server, or write the bundle with the matching version.",
        )
    else:
        findings.add(ReasonCode.MANIFEST_INVALID, f"schema: {schema!r:.64} is not {SCHEMA!r}")
    return False


def _note(problem: ErrorDetails, findings: Findings) -> None:
    where = ".".join(str(part) for part in problem["loc"]) or "manifest"
    is_labels = problem["type"] == ReasonCode.LABELS_MISMATCH
    code = ReasonCode.LABELS_MISMATCH if is_labels else ReasonCode.MANIFEST_INVALID
    is_leaf = isinstance(problem["input"], str | int | float | bool)
    found = f" (found {problem['input']!r:.80})" if is_leaf else ""
    findings.add(code, f"{where}: {problem['msg']}{found}")
