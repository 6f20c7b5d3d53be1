"""A processor's matrix units (Intel AMX) for numba kernels: products of bfloat16 tiles.

A *tile* is a register of 16 rows of 64 bytes. One instruction multiplies 16 rows of 32 bfloat16
numbers by 32 rows of 16 and adds the result to 16 x 16 float32 sums. The right operand is stored in
*pairs*: the numbers of two rows in one column are neighbours. Two tiles of rows by two of columns
make a *block* of 32 x 32 sums. All functions below except ``may_use_tiles`` exist only inside code
that numba compiles.

What it gains, on one core of a Xeon with AMX: the forward reaches 0.66 to 0.92 of the rate of a
large bfloat16 product (``gemm_share_bf16`` of ``bench forward``) where products through the library
reached 0.364. It is 3.8 to 7.5 times as fast as a batched bfloat16 product; with products through
the library it was 4 to 5 times as fast.
"""

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any  # numba and llvmlite have no types

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from peterrec.model.inference.cpu.simd import has_features

ROWS, DEPTH = 16, 32
"""Rows (and columns) of a tile of sums; and the products that one instruction adds to each sum."""

TILE_BYTES = 1024

_SYSTEM_CALL, _REQUEST, _TILES = 158, 0x1023, 18  # arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA

_I8 = ir.IntType(8)
_SUMS, _LEFT, _RIGHT = range(4), range(4, 6), range(6, 8)


HAS_MATRIX_UNITS = has_features("amx-tile", "amx-bf16")


@cache
def may_use_tiles() -> bool:
    """True if there are matrix units and Linux grants them to this process on request."""
    if not HAS_MATRIX_UNITS or platform.system() != "Linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_SYSTEM_CALL, _REQUEST, _TILES) == 0)


def _tile_shapes() -> bytes:
    """The configuration block of eight tiles of full size, as ``ldtilecfg`` reads it."""
    sizes = b"".join((64).to_bytes(2, "little") for _ in range(8))
    rows = bytes([ROWS] * 8)
    return (bytes([1]) + bytes(15) + sizes + bytes(16) + rows).ljust(64, b"\0")


def _call(builder: Any, name: str, *args: Any) -> None:
    form = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(cgutils.get_or_insert_function(builder.module, form, f"llvm.x86.{name}"), args)


def _tile(number: int) -> Any:
    return ir.Constant(_I8, number)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I8.as_pointer())


def _does(count: int, act: Callable[[Any, Any], None]) -> tuple[Any, Any]:
    """Signature and code generator of an intrinsic with ``count`` int64 arguments and no result."""

    def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        act(builder, args)
        return target.get_dummy_value()

    return types.void(*[types.int64] * count), build


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def begin_tiles(context: Any, kept: Any) -> Any:
    """Configure the units, after saving another library's configuration in 64 bytes at ``kept``."""

    def act(builder: Any, args: Any) -> None:
        shapes = bytearray(_tile_shapes())
        constant = ir.Constant(ir.ArrayType(_I8, len(shapes)), shapes)
        at = cgutils.global_constant(builder, "tile_shapes", constant)
        _call(builder, "sttilecfg", _pointer(builder, args[0]))
        _call(builder, "ldtilecfg", builder.bitcast(at, _I8.as_pointer()))

    return _does(1, act)


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def end_tiles(context: Any, kept: Any) -> Any:
    """Restore the configuration that ``begin_tiles`` saved at ``kept``."""
    return _does(1, lambda b, args: _call(b, "ldtilecfg", _pointer(b, args[0])))


def _multiply(rows: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def multiply(context: Any, left: Any, step: Any, right: Any, apart: Any) -> Any:
        def act(builder: Any, args: Any) -> None:
            left, step, right, apart = args
            line = ir.Constant(right.type, 64)
            for tile in _LEFT[:rows]:
                _call(builder, "tileloadd64", _tile(tile), _pointer(builder, left), step)
                left = builder.add(left, builder.mul(step, ir.Constant(step.type, ROWS)))
            for tile in _RIGHT:
                _call(builder, "tileloadd64", _tile(tile), _pointer(builder, right), line)
                right = builder.add(right, apart)
            for i in range(rows):
                for j in range(2):
                    numbers = (_tile(n) for n in (_SUMS[2 * i + j], _LEFT[i], _RIGHT[j]))
                    _call(builder, "tdpbf16ps", *numbers)

        return _does(4, act)

    return multiply


multiply_one, multiply_two = _multiply(1), _multiply(2)
"""Add a product to the sums of one or two tiles of rows.

Lines of ``left`` are ``step`` bytes apart; the two tiles of pairs of ``right`` are ``apart`` bytes
apart."""


def _move(rows: int, name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def move(context: Any, lines: Any, step: Any) -> Any:
        def act(builder: Any, args: Any) -> None:
            at, step = args
            for i in range(rows):
                beside = builder.add(at, ir.Constant(at.type, 64))
                for tile, place in ((_SUMS[2 * i], at), (_SUMS[2 * i + 1], beside)):
                    _call(builder, name, _tile(tile), _pointer(builder, place), step)
                at = builder.add(at, builder.mul(step, ir.Constant(step.type, ROWS)))

        return _does(2, act)

    return move


load_one, load_two = _move(1, "tileloadd64"), _move(2, "tileloadd64")
store_one, store_two = _move(1, "tilestored64"), _move(2, "tilestored64")
"""Read or write the float32 sums of one or two tiles of rows, lines ``step`` bytes apart."""
