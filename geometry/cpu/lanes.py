"""Eight float32 lanes as one numba value, so that kernels are SIMD by construction.

Inside a kernel: `load` and `store` move 8 neighbours of a flat float32 array, `pick` and `store_rows` those that lie
apart, `+ - * / >= <= >` and the functions named as in `math` work lane by lane (a plain number is broadcast),
comparisons give masks, `&` joins masks, `where` selects. LLVM splits the vectors where the machine's are narrower.
"""

import operator

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from geometry.cpu import HELPER

WIDTH = 8
LOG2_E = 1.4426950408889634
# log(2) in two parts, the first of so few digits that whole multiples of it are exact.
LOG_2, LOG_2_REST = 0.693359375, -2.12194440e-4
# exp(r) = 1 + r (1 + r (E2 + r (E3 + ...))) for r within log(2) / 2 of 0, to 1e-8: interpolated at Chebyshev nodes
E2, E3, E4, E5, E6 = 0.5, 0.16666576, 0.041666552, 0.0083632329, 0.001392625
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


def _broadcast(context, builder, kind, value):
    """`value` itself when it is a vector, else a vector with that number, as a float32, in each lane."""
    if kind == lanes:
        return value
    value = context.cast(builder, value, kind, types.float32)
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def _operator(symbol, result, emit):
    """Teach numba `symbol` on lanes and lanes, or lanes and a number; `emit(builder, a, b)` makes the instruction."""

    @type_callable(symbol)
    def typer(context):
        def typing(a, b):
            if lanes in (a, b) and all(t == lanes or isinstance(t, types.Number) for t in (a, b)):
                return result

        return typing

    def lower(context, builder, signature, arguments):
        return emit(builder, *(_broadcast(context, builder, *each) for each in zip(signature.args, arguments)))

    for pair in ((lanes, lanes), (lanes, types.Number), (types.Number, lanes)):
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
def pick(typing, array, index, stride):
    """The 8 values array[index], array[index + stride], ... of a flat array."""

    def codegen(context, builder, signature, arguments):
        array, index, stride = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        value = ir.Constant(_VECTOR, ir.Undefined)
        for k in range(WIDTH):
            value = builder.insert_element(value, builder.load(builder.gep(data, [index])), ir.IntType(32)(k))
            index = builder.add(index, stride)
        return value

    return lanes(array, types.intp, types.intp), codegen


@intrinsic
def store_rows(typing, array, index, stride, columns):
    """Write lane k of 8 `columns` to the 8 places from array[index + k * stride] on."""

    def codegen(context, builder, signature, arguments):
        array, index, stride, columns = arguments
        rows = _transposed(builder, [builder.extract_value(columns, k) for k in range(WIDTH)])
        _store_apart(context, builder, signature.args[0], array, index, stride, rows)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.UniTuple(lanes, WIDTH)), codegen


@intrinsic
def transpose(typing, array, index, stride, out, to, step):
    """Make columns of 8 rows of 8: value k of the one at array[index + i * stride] goes to out[to + k * step + i]."""

    def codegen(context, builder, signature, arguments):
        array, index, stride, out, to, step = arguments
        rows = []
        for _ in range(WIDTH):
            rows.append(builder.load(_pointer(context, builder, signature.args[0], array, index), align=4))
            index = builder.add(index, stride)
        _store_apart(context, builder, signature.args[3], out, to, step, _transposed(builder, rows))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, out, types.intp, types.intp), codegen


@intrinsic
def store_mixed(typing, array, index, columns):
    """Write lane 0 of each of n `columns` to array[index] and on, then lane 1 of each, ... : 8 n values."""

    def codegen(context, builder, signature, arguments):
        array, index, columns = arguments
        count = len(signature.args[2])
        columns = [builder.extract_value(columns, k) for k in range(count)]
        for row in range(count):
            value = ir.Constant(_VECTOR, ir.Undefined)
            for k, column in enumerate(columns):
                places = [divmod(WIDTH * row + lane, count) for lane in range(WIDTH)]
                order = [WIDTH + place if which == k else lane for lane, (place, which) in enumerate(places)]
                value = builder.shuffle_vector(value, column, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), order))
            builder.store(value, _pointer(context, builder, signature.args[0], array, index), align=4)
            index = builder.add(index, context.get_constant(types.intp, WIDTH))
        return context.get_dummy_value()

    return types.void(array, types.intp, columns), codegen


def _transposed(builder, rows):
    for _ in range(3):  # three times, each row of the first half is interleaved with one of the second
        pairs = zip(rows[: WIDTH // 2], rows[WIDTH // 2 :])
        rows = [_interleaved(builder, a, b, half) for a, b in pairs for half in (0, 1)]
    return rows


def _store_apart(context, builder, array_type, array, index, stride, rows):
    """Write the `rows` to array[index], array[index + stride], ... on."""
    for row in rows:
        builder.store(row, _pointer(context, builder, array_type, array, index), align=4)
        index = builder.add(index, stride)


def _interleaved(builder, a, b, half):
    """a0 b0 a1 b1 ... of the lower or upper half of the lanes."""
    order = [WIDTH * (k % 2) + half * WIDTH // 2 + k // 2 for k in range(WIDTH)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), order))


def _function(name):
    """An LLVM function of one vector, lane by lane."""

    def typer(typing, value):
        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(_VECTOR, [_VECTOR])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v8f32"), arguments)

        return lanes(lanes), codegen

    return intrinsic(typer)


sqrt, log, floor, ceil, fabs = (_function(name) for name in ("sqrt", "log", "floor", "ceil", "fabs"))


@njit(**HELPER)
def exp(x):
    """To 1e-7 of its value; x beyond -87 and 88 counts as these, so that nothing is infinite, and NaN remains."""
    x = where(x >= 88, 88, where(x <= -87, -87, x))
    power = floor(LOG2_E * x + 0.5)
    r = (x - LOG_2 * power) - LOG_2_REST * power
    return (1 + r * (1 + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))) * _power_of_two(power)


@intrinsic
def _power_of_two(typing, power):
    """2 to whole numbers from -126 to 127; anything at all elsewhere."""

    def codegen(context, builder, signature, arguments):
        kind = ir.VectorType(ir.IntType(32), WIDTH)
        bias, shift = (ir.Constant(kind, [number] * WIDTH) for number in (127, 23))
        exponent = builder.add(builder.fptosi(arguments[0], kind), bias)
        return builder.bitcast(builder.shl(exponent, shift), _VECTOR)

    return lanes(lanes), codegen


@intrinsic
def where(typing, condition, a, b):
    """a where the mask holds, else b."""

    def codegen(context, builder, signature, arguments):
        chosen = zip(signature.args[1:], arguments[1:])
        return builder.select(arguments[0], *(_broadcast(context, builder, *each) for each in chosen))

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
    """The number in each lane."""

    def codegen(context, builder, signature, arguments):
        return _broadcast(context, builder, signature.args[0], arguments[0])

    return lanes(value), codegen


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
