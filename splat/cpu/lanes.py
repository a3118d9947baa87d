"""Eight float32 lanes as one numba value, so that the blending kernels are SIMD by construction.

Inside a kernel: `load` and `store` move 8 neighbours of a flat float32 array, `+ - * / >= <= >` work lane by lane (a
plain float32 is broadcast), comparisons give masks, `&` joins masks, `where` selects. LLVM splits the vectors where the
machine's are narrower.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

WIDTH = 8
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_MASK = ir.VectorType(ir.IntType(1), WIDTH)


class LanesType(types.Type):
    def __init__(self):
        super().__init__("float32x8")


class MaskType(types.Type):
    def __init__(self):
        super().__init__("bool8")


lanes, mask = LanesType(), MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _VECTOR)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _MASK)


def _broadcast(builder, value):
    """`value` itself when it is a vector, else a vector with that float32 in each lane."""
    if value.type == _VECTOR:
        return value
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def _operator(symbol, result, emit):
    """Teach numba `symbol` on lanes and lanes, or lanes and a float32; `emit(builder, a, b)` makes the instruction."""

    @type_callable(symbol)
    def typer(context):
        def typing(a, b):
            if lanes in (a, b) and all(t in (lanes, types.float32) for t in (a, b)):
                return result

        return typing

    def lower(context, builder, signature, arguments):
        return emit(builder, *(_broadcast(builder, value) for value in arguments))

    for pair in ((lanes, lanes), (lanes, types.float32), (types.float32, lanes)):
        lower_builtin(symbol, *pair)(lower)


# "contract" lets a * b + c become one fused instruction; NaN and infinity keep their meaning.
_operator(operator.add, lanes, lambda builder, a, b: builder.fadd(a, b, flags=("contract",)))
_operator(operator.sub, lanes, lambda builder, a, b: builder.fsub(a, b, flags=("contract",)))
_operator(operator.mul, lanes, lambda builder, a, b: builder.fmul(a, b, flags=("contract",)))
_operator(operator.truediv, lanes, lambda builder, a, b: builder.fdiv(a, b, flags=("contract",)))
_operator(operator.ge, mask, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))
_operator(operator.gt, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.le, mask, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@type_callable(operator.and_)
def _type_and(context):
    def typing(a, b):
        if a == mask and b == mask:
            return mask

    return typing


@lower_builtin(operator.and_, mask, mask)
def _lower_and(context, builder, signature, arguments):
    return builder.and_(*arguments)


def _pointer(context, builder, array_type, array, index):
    """The address of array[index], without the check for negative indices."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typing, array, index):
    """The 8 values from array[index] on."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typing, array, index, value):
    """Write 8 values from array[index] on."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def where(typing, condition, a, b):
    """a where the mask holds, else b."""

    def codegen(context, builder, signature, arguments):
        return builder.select(arguments[0], *(_broadcast(builder, value) for value in arguments[1:]))

    return lanes(condition, a, b), codegen


@intrinsic
def some(typing, condition):
    """Whether the mask holds in at least one lane."""

    def codegen(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(WIDTH), 0))

    return types.boolean(condition), codegen


@intrinsic
def fill(typing, value):
    """The float32 in each lane."""
    return lanes(types.float32), lambda context, builder, signature, arguments: _broadcast(builder, arguments[0])


@intrinsic
def ramp(typing):
    """0, 1, ... 7."""
    return lanes(), lambda *_: ir.Constant(_VECTOR, [float(i) for i in range(WIDTH)])


@intrinsic
def total(typing, value):
    """The sum of the lanes, in a fixed order."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v8f32")
        return builder.call(reduce, [ir.Constant(_FLOAT, -0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(lanes), codegen
