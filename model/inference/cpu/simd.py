"""Vectors of sixteen numbers for numba kernels: explicit vector arithmetic.

A ``vec`` is a value of type ``<16 x float>`` in LLVM, so the code is correct on any processor and
fast on one with wide registers. Numbers in memory are float32 (``floats``) or bfloat16
(``halves``); arithmetic is in float32. The functions below exist only inside code that numba
compiles.
"""

from collections.abc import Callable
from typing import Any  # numba and llvmlite have no types

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16
"""Numbers of a vector."""


def has_features(*names: str) -> bool:
    """True if the processor that numba compiles for has all of LLVM's features."""
    chosen = config.CPU_FEATURES
    if chosen is None:
        found = get_host_cpu_features()
        return all(bool(found.get(name)) for name in names)
    return all(f"+{name}" in chosen.split(",") for name in names)


HAS_WIDE_REGISTERS = has_features("avx512f")
"""True if sixteen float32 numbers fit into one register."""

_ROUNDS, _MASKS_HALVES = has_features("avx512bf16"), has_features("avx512bw", "avx512vl")


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite is untyped
    """LLVM's bfloat16 type, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"


_F32, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_VECTOR, _BITS, _HALF = (ir.VectorType(element, LANES) for element in (_F32, _I32, _I16))
_ROUNDED = ir.VectorType(_BFloat(), LANES)

_REORDERABLE = ("contract", "reassoc", "nsz", "arcp")
"""Fast-math flags; none of them assumes that numbers are finite."""

EXP2_POLYNOMIAL = (
    1.5403530393381610e-4,
    1.3333558146428443e-3,
    9.6181291076284772e-3,
    5.5504108664821580e-2,
    2.4022650695910071e-1,
    6.9314718055994531e-1,
    1.0,
)
"""Taylor coefficients ln(2)^n/n! of 2^r, highest first; the error is below 2e-7 for |r| <= 1/2."""

ROUNDING = 12582912.0
"""1.5·2^23: adding and subtracting it rounds a float32 to the nearest integer."""


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Vector16")


vec = _Vector()
floats = types.CPointer(types.float32)  # type: ignore[attr-defined]  # numba fills it in
halves = types.CPointer(types.uint16)  # type: ignore[attr-defined]  # numba fills it in
longs = types.CPointer(types.int64)  # type: ignore[attr-defined]  # numba fills it in
ints = types.CPointer(types.int32)  # type: ignore[attr-defined]  # numba fills it in
small_ints = types.CPointer(types.int8)  # type: ignore[attr-defined]  # numba fills it in
doubles = types.CPointer(types.float64)  # type: ignore[attr-defined]  # numba fills it in


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]  # numba is untyped
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _pointer_to(kind: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def pointer(context: Any, address: Any) -> Any:
        return kind(types.int64), _address_as(kind)

    return pointer


float_pointer, half_pointer, int_pointer, long_pointer, byte_pointer, double_pointer = map(
    _pointer_to, (floats, halves, ints, longs, small_ints, doubles)
)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def count_bits(context: Any, number: Any) -> Any:
    """The number of ones in an int64."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def pointer_like(context: Any, address: Any, sample: Any) -> Any:
    """Turn an address into a pointer to float32, or to bfloat16 if ``sample`` is a uint16."""
    kind = halves if sample == types.uint16 else floats
    return kind(types.int64, sample), _address_as(kind)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def is_half(context: Any, sample: Any) -> Any:
    """True if ``sample`` stands for bfloat16; a constant for the compiler."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), sample == types.uint16)

    return types.boolean(sample), build


def _address_as(kind: Any) -> Any:
    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], target.get_value_type(kind))

    return build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def splat(context: Any, number: Any) -> Any:
    """Sixteen copies of a float32."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _broadcast(builder, args[0], _VECTOR)

    return vec(types.float32), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def number(context: Any, pointer: Any, index: Any) -> Any:
    """Load one number as float32."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.load(builder.gep(args[0], [args[1]]))
        if pointer != halves:
            return found
        bits = builder.shl(builder.zext(found, _I32), ir.Constant(_I32, 16))
        return builder.bitcast(bits, _F32)

    return types.float32(pointer, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def load(context: Any, pointer: Any, index: Any) -> Any:
    """Load sixteen numbers from ``index`` on."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(builder, args[0], args[1], pointer)
        return _widened(builder, builder.load(at, align=_alignment(pointer)))

    return vec(pointer, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def load_first(context: Any, pointer: Any, index: Any, count: Any) -> Any:
    """Load ``count`` numbers from ``index`` on, then zeros; memory beyond them is not read."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        if pointer == halves and not _MASKS_HALVES:
            return _widened(builder, _load_halves(builder, *args))
        at, mask = _vector_at(builder, args[0], args[1], pointer), _first(builder, args[2])
        return _widened(builder, _masked_load(builder, at, mask, pointer))

    return vec(pointer, types.int64, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def load_bytes(context: Any, pointer: Any, index: Any) -> Any:
    """Load sixteen int8 from ``index`` on, as float32."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.VectorType(ir.IntType(8), LANES)
        at = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
        return builder.sitofp(builder.sext(builder.load(at, align=1), _BITS), _VECTOR)

    return vec(small_ints, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def store(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Store sixteen numbers, rounded to the memory's type."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(builder, args[0], args[1], pointer)
        builder.store(_narrowed(builder, args[2], pointer), at, align=_alignment(pointer))
        return target.get_dummy_value()

    return types.void(pointer, types.int64, vec), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def store_first(context: Any, pointer: Any, index: Any, value: Any, count: Any) -> Any:
    """Store the first ``count`` numbers only."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _vector_at(builder, args[0], args[1], pointer)
        _store_first(builder, _narrowed(builder, args[2], pointer), at, args[3], pointer)
        return target.get_dummy_value()

    return types.void(pointer, types.int64, vec, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def store_pairs(context: Any, address: Any, offset: Any, low: Any, high: Any) -> Any:
    """Store sixteen pairs of bfloat16, one number from either vector, ``offset`` bytes on."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, (a, b) = builder.add(args[0], args[1]), (builder.bitcast(v, _BITS) for v in args[2:])
        sixteen = ir.Constant(_BITS, [16] * LANES)
        upper = builder.and_(b, ir.Constant(_BITS, [0xFFFF0000] * LANES))
        pairs = builder.or_(builder.lshr(a, sixteen), upper)
        builder.store(pairs, builder.inttoptr(place, _BITS.as_pointer()), align=4)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64, vec, vec), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def copy_first(context: Any, out: Any, to: Any, source: Any, at: Any, count: Any) -> Any:
    """Copy sixteen numbers, or ``count`` if it is less, between memory of one type."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = _first(builder, args[4])
        read = _masked_load(builder, _vector_at(builder, args[2], args[3], source), mask, source)
        _store_first(builder, read, _vector_at(builder, args[0], args[1], out), args[4], out)
        return target.get_dummy_value()

    return types.void(out, types.int64, source, types.int64, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def first(context: Any, value: Any, count: Any) -> Any:
    """The first ``count`` numbers of a vector, then zeros."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(_first(builder, args[1]), args[0], zeros)

    return vec(vec, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def prefetch(context: Any, pointer: Any, index: Any) -> Any:
    """Prefetch the cache line of a number that will be read soon."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        form = ir.FunctionType(ir.VoidType(), [at.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(_I32, value) for value in (0, 2, 1))
        builder.call(function, [at, read, near, data])
        return target.get_dummy_value()

    return types.void(pointer, types.int64), build


def _elementwise(operation: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def apply(context: Any, a: Any, b: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(args[0], args[1], flags=_REORDERABLE)

        return vec(vec, vec), build

    return apply


add, sub, mul, div = (_elementwise(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a·b + c``, rounded once."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fma(builder, *args)

    return vec(vec, vec, vec), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def rectify(context: Any, value: Any) -> Any:
    """``max(value, 0)``; NaN stays NaN."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", args[0], zeros), zeros, args[0])

    return vec(vec), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def total(context: Any, value: Any) -> Any:
    """The sum of a vector's numbers, in a fixed order."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        form = ir.FunctionType(_F32, [_F32, _VECTOR])
        name = "llvm.vector.reduce.fadd.v16f32"
        function = cgutils.get_or_insert_function(builder.module, form, name)
        return builder.call(function, [ir.Constant(_F32, -0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vec), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def exp2(context: Any, value: Any) -> Any:
    """2 to the power of each number, clamped to ±126; NaN stays NaN."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = args[0]
        for bound, order in ((126.0, ">"), (-126.0, "<")):
            limit = _constant(bound)
            x = builder.select(builder.fcmp_ordered(order, x, limit), limit, x)
        whole = builder.fsub(builder.fadd(x, _constant(ROUNDING)), _constant(ROUNDING))
        rest = builder.fsub(x, whole)
        power = _constant(EXP2_POLYNOMIAL[0])
        for term in EXP2_POLYNOMIAL[1:]:
            power = _fma(builder, power, rest, _constant(term))
        exponent = builder.add(builder.fptosi(whole, _BITS), ir.Constant(_BITS, [127] * LANES))
        scale = builder.shl(exponent, ir.Constant(_BITS, [23] * LANES))
        return builder.fmul(power, builder.bitcast(scale, _VECTOR))

    return vec(vec), build


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _broadcast(builder: Any, value: Any, kind: Any) -> Any:
    nothing, lane = ir.Constant(kind, ir.Undefined), ir.Constant(_I32, 0)
    single = builder.insert_element(nothing, value, lane)
    lanes = ir.VectorType(_I32, kind.count)
    return builder.shuffle_vector(single, nothing, ir.Constant(lanes, [0] * kind.count))


def _first(builder: Any, count: Any) -> Any:
    """A mask of the first ``count`` numbers."""
    lanes = ir.Constant(_BITS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _broadcast(builder, builder.trunc(count, _I32), _BITS))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    form = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, form, "llvm.fma.v16f32")
    return builder.call(function, [a, b, c])


def _vector_at(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    wide = _HALF if kind == halves else _VECTOR
    return builder.bitcast(builder.gep(pointer, [index]), wide.as_pointer())


def _masked_load(builder: Any, at: Any, mask: Any, kind: Any) -> Any:
    wide = at.type.pointee
    form = ir.FunctionType(wide, [at.type, _I32, mask.type, wide])
    name = f"llvm.masked.load.{_suffix(kind)}.p0"
    function = cgutils.get_or_insert_function(builder.module, form, name)
    alignment, zeros = ir.Constant(_I32, _alignment(kind)), ir.Constant(wide, [0] * LANES)
    return builder.call(function, [at, alignment, mask, zeros])


def _load_halves(builder: Any, pointer: Any, index: Any, count: Any) -> Any:
    """Load up to sixteen bfloat16 where LLVM would turn a masked load into sixteen scalar ones."""

    def load_whole() -> Any:
        return builder.load(_vector_at(builder, pointer, index, halves), align=_alignment(halves))

    def load_part() -> Any:
        return _load_pairs(builder, pointer, index, count)

    return _whole_or_part(builder, count, load_whole, load_part)


def _whole_or_part(
    builder: Any, count: Any, whole: Callable[[], Any], part: Callable[[], Any]
) -> Any:
    """Branch on whether ``count`` fills a vector; return the value of the branch, if any."""
    is_whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
    with builder.if_else(is_whole) as (then, otherwise):
        with then:
            of_whole, after_whole = whole(), builder.block
        with otherwise:
            of_part, after_part = part(), builder.block
    if of_whole is None:
        return None
    found = builder.phi(of_whole.type)
    found.add_incoming(of_whole, after_whole)
    found.add_incoming(of_part, after_part)
    return found


def _load_pairs(builder: Any, pointer: Any, index: Any, count: Any) -> Any:
    """Load fewer than sixteen bfloat16: pairs, and a single last one if their number is odd."""
    eight, one = ir.VectorType(_I32, LANES // 2), ir.Constant(count.type, 1)
    first = builder.gep(pointer, [index])
    whole = builder.trunc(builder.ashr(count, one), _I32)
    mask = builder.icmp_signed(
        "<", ir.Constant(eight, list(range(LANES // 2))), _broadcast(builder, whole, eight)
    )
    at = builder.bitcast(first, eight.as_pointer())
    form = ir.FunctionType(eight, [at.type, _I32, mask.type, eight])
    load = cgutils.get_or_insert_function(builder.module, form, "llvm.masked.load.v8i32.p0")
    nothing = ir.Constant(eight, [0] * (LANES // 2))
    pairs = builder.bitcast(builder.call(load, [at, ir.Constant(_I32, 2), mask, nothing]), _HALF)
    is_some = builder.icmp_signed(">", count, ir.Constant(count.type, 0))
    is_odd = builder.and_(builder.trunc(count, ir.IntType(1)), is_some)
    last = builder.sub(count, one)
    zero = cgutils.global_constant(builder, "zero", ir.Constant(_I16, 0))
    single = builder.load(builder.select(is_odd, builder.gep(first, [last]), zero))
    place = builder.select(is_odd, builder.trunc(last, _I32), ir.Constant(_I32, -1))
    lanes = ir.Constant(_BITS, list(range(LANES)))
    is_last = builder.icmp_signed("==", lanes, _broadcast(builder, place, _BITS))
    return builder.select(is_last, _broadcast(builder, single, _HALF), pairs)


def _store_first(builder: Any, value: Any, at: Any, count: Any, kind: Any) -> None:
    """Store with a mask, but whole vectors without one where LLVM has no instruction for masks.

    Without AVX-512 a masked store takes AMD's processors ten times as long as a plain one. Storing
    whole vectors plainly took products from 50 to 81 GFLOP/s at 64 channels and from 70 to 84 at
    256, of 91 that the core reaches (Zen 3).
    """

    def store_whole() -> None:
        builder.store(value, at, align=_alignment(kind))

    def store_part() -> None:
        _masked_store(builder, value, at, _first(builder, count), kind)

    if HAS_WIDE_REGISTERS:
        store_part()
    else:
        _whole_or_part(builder, count, store_whole, store_part)


def _masked_store(builder: Any, value: Any, at: Any, mask: Any, kind: Any) -> None:
    form = ir.FunctionType(ir.VoidType(), [value.type, at.type, _I32, mask.type])
    name = f"llvm.masked.store.{_suffix(kind)}.p0"
    function = cgutils.get_or_insert_function(builder.module, form, name)
    builder.call(function, [value, at, ir.Constant(_I32, _alignment(kind)), mask])


def _alignment(kind: Any) -> int:
    return 2 if kind == halves else 4


def _suffix(kind: Any) -> str:
    return "v16i16" if kind == halves else "v16f32"


def _widened(builder: Any, value: Any) -> Any:
    """Convert to float32, of which bfloat16 is the upper half."""
    if value.type != _HALF:
        return value
    bits = builder.shl(builder.zext(value, _BITS), ir.Constant(_BITS, [16] * LANES))
    return builder.bitcast(bits, _VECTOR)


def _narrowed(builder: Any, value: Any, kind: Any) -> Any:
    """Round to the memory's type, ties to even; NaN stays NaN unless its payload overflows."""
    if kind != halves:
        return value
    if _ROUNDS:
        return builder.bitcast(builder.fptrunc(value, _ROUNDED), _HALF)
    bits, one = builder.bitcast(value, _BITS), ir.Constant(_BITS, [1] * LANES)
    sixteen, below_half = (ir.Constant(_BITS, [n] * LANES) for n in (16, 0x7FFF))
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(builder.add(bits, below_half), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), _HALF)
