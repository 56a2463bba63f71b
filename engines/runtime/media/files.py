"""The bytes of a picture or a sound that a user names: a file or a pipe, up to a limit."""

from __future__ import annotations

from pathlib import Path

from specs.errors import InputError

#: More than any picture or sound that is handed over at once; a device like /dev/zero never ends.
MAX_BYTES = 1 << 30


def read_bytes(path: str | Path, *, what: str) -> bytes:
    """All bytes of a file.

    Args:
        what: "picture" or "sound", for the message.

    Raises:
        InputError: there is no such file, it cannot be read, or it is larger than MAX_BYTES.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that holds a zero byte
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        raise InputError(f"the {what} cannot be read", where=str(path), got=said, fix="check the path") from None
    except MemoryError:
        raise InputError(
            f"the {what} does not fit into memory",
            where=str(path),
            fix="cut it into pieces",
        ) from None
    if len(data) > MAX_BYTES:
        raise InputError(
            f"the {what} is too large to be read at once",
            where=str(path),
            got=f"over {MAX_BYTES} bytes",
            fix="cut it into pieces",
        )
    return data
