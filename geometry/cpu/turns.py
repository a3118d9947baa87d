"""Work dealt out to threads as they become free, where equal shares would not take equally long.

In a kernel: `turn = np.zeros(1, np.int64)`, then in each of `prange(TAKERS)` rounds `item = take(turn)` until there is
none left. Which thread does what changes from run to run, so items must not depend on each other.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TAKERS = 256  # at least as many as there are threads; those who come late find nothing to do


@intrinsic
def take(typing_context, turn):
    """What turn[0] was, an int64 array's, before this thread alone raised it by 1."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(turn), emit
