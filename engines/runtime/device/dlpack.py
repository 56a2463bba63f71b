"""DLPack (dmlc.github.io/dlpack), as far as the runtime needs it: read a capsule that another library made, make one.

    capsule "dltensor" -> DLManagedTensor { DLTensor { data, device, ndim, dtype, shape, strides, offset }, deleter }

Reading takes no ownership: the capsule frees its tensor when it is dropped, so whoever reads keeps the capsule. Making
hands `owner` over: it is let go when the consumer calls the deleter, or with the capsule when there was no consumer.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy as np

CPU, CUDA = 1, 2  # DLDeviceType
#: DLDataTypeCode by numpy's kind of a dtype; DLPack's bool has eight bits.
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}
_NAME = b"dltensor"

_api = ctypes.pythonapi
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_get_dying = ctypes.PYFUNCTYPE(c_void_p, c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_make = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_char_p, c_void_p)(("PyCapsule_New", _api))

_HEADER = struct.Struct("QiiiBBHQQQ")  # DLTensor


class Layout(NamedTuple):
    """What a DLTensor says. `strides` counts elements, None for row after row; `dtype` is None where numpy has none."""

    address: int
    device: tuple[int, int]
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


def read_capsule(capsule: object) -> Layout:
    """Raises ValueError for a capsule that is not "dltensor", or whose tensor somebody has taken."""
    data, kind, index, rank, code, bits, lanes, shape, strides, offset = _HEADER.unpack(
        ctypes.string_at(_get_pointer(capsule, _NAME), _HEADER.size)
    )
    integers = f"{rank}q"
    return Layout(
        address=data + offset,
        device=(kind, index),
        dtype=_find_dtype(code, bits, lanes),
        shape=struct.unpack(integers, ctypes.string_at(shape, 8 * rank)),
        strides=struct.unpack(integers, ctypes.string_at(strides, 8 * rank)) if strides else None,
    )


def _find_dtype(code: int, bits: int, lanes: int) -> np.dtype[Any] | None:
    try:
        return _DTYPES[code, bits] if lanes == 1 else None
    except KeyError:
        return None


_DTYPES = {
    (code, bits): np.dtype(f"{kind}{bits // 8}")
    for code, kind in _KINDS.items()
    for bits in ((8,) if kind == "b" else (16, 32, 64) if kind == "f" else (8, 16, 32, 64))
}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager", c_void_p), ("deleter", c_void_p))


#: Address of a tensor that was handed out -> what must live as long as it does.
_lent: dict[int, tuple[object, ...]] = {}


def make_capsule(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> object:
    """A capsule over device memory of GPU 0 that lies row after row; `owner` lives until its consumer lets go."""
    rank = len(shape)
    sizes, strides = (c_int64 * rank)(*shape), (c_int64 * rank)()
    step = 1
    for axis in reversed(range(rank)):
        strides[axis], step = step, step * max(shape[axis], 1)
    managed = _ManagedTensor(
        _Tensor(
            address, CUDA, 0, rank, _CODES[dtype.kind], dtype.itemsize * 8, 1,
            ctypes.addressof(sizes), ctypes.addressof(strides), 0,
        ),
        None,
        _DELETER_ADDRESS,
    )  # fmt: skip
    place = ctypes.addressof(managed)
    _lent[place] = (managed, sizes, strides, owner)
    return _make(place, _NAME, _DESTRUCTOR_ADDRESS)


# What follows may be called when the interpreter is ending: it uses no global name, and is never freed.


def _let_go(place: int, lent: dict[int, tuple[object, ...]] = _lent) -> None:
    lent.pop(place, None)


def _destroy(
    capsule: int,
    lent: dict[int, tuple[object, ...]] = _lent,
    is_valid: Callable[..., Any] = _is_valid,
    get: Callable[..., Any] = _get_dying,
    name: bytes = _NAME,
) -> None:
    if is_valid(capsule, name):  # a consumer renames what it takes
        lent.pop(get(capsule, name), None)


_DELETER = ctypes.CFUNCTYPE(None, c_void_p)(_let_go)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, c_void_p)(_destroy)
_DELETER_ADDRESS = ctypes.cast(_DELETER, c_void_p).value
_DESTRUCTOR_ADDRESS = ctypes.cast(_DESTRUCTOR, c_void_p).value
for _kept in (_DELETER, _DESTRUCTOR):
    _api.Py_IncRef(ctypes.py_object(_kept))
