"""Names of element types, and the dtype objects of NumPy and PyTorch that mean the same."""

from __future__ import annotations

from zbccl.errors import InvalidArgumentError

_NAMES = {
    "f32": ("float32", "float"),
    "f64": ("float64", "double"),
    "f16": ("float16", "half"),
    "bf16": ("bfloat16",),
    "e4m3": ("float8_e4m3fn",),
    "e5m2": ("float8_e5m2",),
    "i8": ("int8",),
    "u8": ("uint8",),
    "i16": ("int16",),
    "u16": ("uint16",),
    "i32": ("int32",),
    "u32": ("uint32",),
    "i64": ("int64",),
    "u64": ("uint64",),
}
_BY_ALIAS = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases)}


def dtype_name(dtype: object) -> str:
    """zbccl's name of a dtype: "f32" for "f32", "float32", numpy.float32, torch.float32, ...

    Raises InvalidArgumentError for a type that zbccl does not carry, such as bool.
    """
    if isinstance(dtype, str):
        text = dtype
    elif isinstance(dtype, type):
        # A NumPy or ml_dtypes scalar class; Python's own float and int say no width.
        text = dtype.__name__ if dtype.__module__ != "builtins" else f"builtins.{dtype.__name__}"
    else:
        name = getattr(dtype, "name", None)  # numpy.dtype has one, torch.dtype has not
        text = name if isinstance(name, str) else str(dtype)
    try:
        return _BY_ALIAS[text.removeprefix("torch.")]
    except KeyError:
        raise InvalidArgumentError(
            f"unknown dtype {dtype!r}; known are {' '.join(_NAMES)}, "
            "and the NumPy and PyTorch types of the same meaning"
        ) from None
