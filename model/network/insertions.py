"""How a patch reads and writes at a convolution, as the kernels are told."""

from peterrec.model.spec import PatchGeometry

PLAIN, SERIAL, PARALLEL, PARALLEL_SKIP = 0, 1, 2, 3


def mode_of(geometry: PatchGeometry) -> int:
    """The mode of a geometry's patched convolutions."""
    if geometry.insertion != "parallel2":
        return SERIAL
    return PARALLEL_SKIP if geometry.has_inner_skip else PARALLEL
