"""A program of its own: the fitted objects in a joblib file, as plain data. It imports no package.

Unpickling runs what a file names. Here a file may name the classes below only, and for each of
them stands an empty record that keeps attributes: neither scikit-learn nor joblib nor numpy is
imported, and no code of the file's choice runs. Arrays lie in the stream as raw bytes (joblib's
`NumpyArrayWrapper`) and are copied out as they are. `joblib_files.py` starts it, and reads what it
writes:

    python -I joblib_reader.py FILE FOLDER

makes FOLDER/values.json, where an object is {"class": ..., "attributes": {...}} and an array
{"array": its file, "dtype": ..., "shape": [...]}.
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

VALUES_NAME = "values.json"
WRAPPER = "NumpyArrayWrapper"
ALLOWED = {
    ("joblib.numpy_pickle", WRAPPER),
    ("numpy", "dtype"),
    ("numpy", "float64"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "scalar"),
    ("sklearn.calibration", "CalibratedClassifierCV"),
    ("sklearn.calibration", "_CalibratedClassifier"),
    ("sklearn.calibration", "_SigmoidCalibration"),
    ("sklearn.feature_extraction.text", "TfidfTransformer"),
    ("sklearn.feature_extraction.text", "TfidfVectorizer"),
    ("sklearn.svm._classes", "LinearSVC"),
}
FORMATS = {"f8": "<d", "i8": "<q", "i4": "<i"}
"""Element types that are taken -> how the struct module reads one."""
MAX_ARRAY_BYTES = 1 << 30
REACHING_OUT = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")
"""Events of the interpreter that this program has no use for."""


class UnexpectedContentError(Exception):
    """The file holds something that was not expected."""


class Record:
    """Stands for an object of an allowed class; keeps what the file says of it."""

    name = ""
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    def __new__(cls, *arguments: Any) -> Record:
        """Pickle makes objects without calling their constructor."""
        record = super().__new__(cls)
        record.arguments, record.attributes = arguments, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {"state": state}


class BareStream:
    """A stream that can only be read in order, so that no byte beyond an opcode is taken."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read
        self.readline = stream.readline


class PlainUnpickler(pickle.Unpickler):
    """Reads records, and the arrays that lie between them.

    Args:
        stream: The file.
        folder: Receives a file for each array.
    """

    def __init__(self, stream: BinaryIO, folder: Path) -> None:
        super().__init__(BareStream(stream))
        self._stream = stream
        self._folder = folder
        self._n_arrays = 0

    def find_class(self, module: str, name: str) -> type[Record]:
        """The record that stands for a class; no class is ever looked up.

        Raises:
            UnexpectedContentError: It is not one of those allowed.
        """
        if (module, name) not in ALLOWED:
            raise UnexpectedContentError(f"expected known classes only, found {module}.{name}")
        members: dict[str, Any] = {"name": name}
        if name == WRAPPER:
            members["__setstate__"] = lambda record, state: self._take_array(record, state)
        return type(name, (Record,), members)

    def _take_array(self, record: Record, state: dict[str, Any]) -> None:
        """Copy out the array whose bytes follow its description."""
        dtype = read_dtype(state["dtype"])
        shape = [int(length) for length in state["shape"]]
        n_bytes = struct.calcsize(FORMATS[dtype])
        for length in shape:
            n_bytes *= length
        if state["order"] != "C" or not 0 <= n_bytes <= MAX_ARRAY_BYTES:
            raise UnexpectedContentError(
                f"expected an array in C order of at most {MAX_ARRAY_BYTES} bytes, found order "
                f"{state['order']!r} and shape {shape}"
            )
        if state.get("numpy_array_alignment_bytes") is not None:
            self._stream.read(self._stream.read(1)[0])
        file = f"array-{self._n_arrays}.bin"
        self._n_arrays += 1
        data = self._stream.read(n_bytes)
        if len(data) < n_bytes:
            raise UnexpectedContentError(f"expected {n_bytes} bytes of an array, found {len(data)}")
        (self._folder / file).write_bytes(data)
        record.attributes = {"array": file, "dtype": f"<{dtype}", "shape": shape}


def read_dtype(record: Record) -> str:
    """The element type of an array or scalar.

    Raises:
        UnexpectedContentError: It is none of those taken, or big-endian.
    """
    code = record.arguments[0]
    order = record.attributes.get("state", (3, "<"))[1]
    if code not in FORMATS or order != "<":
        raise UnexpectedContentError(
            f"expected little-endian {', '.join(FORMATS)}, found {order}{code}"
        )
    return str(code)


def describe(value: Any) -> Any:
    """A value of the file as JSON has it.

    Raises:
        UnexpectedContentError: It is of no kind that fitted objects hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, type) and issubclass(value, Record):
        return {"class": value.name, "attributes": {}}
    if isinstance(value, Record):
        return describe_record(value)
    raise UnexpectedContentError(f"expected plain values, found {type(value).__name__}")


def describe_record(record: Record) -> Any:
    """An array, a number, or an object with its attributes."""
    if record.name == WRAPPER:
        return record.attributes
    if record.name == "scalar":
        dtype, data = record.arguments
        return struct.unpack(FORMATS[read_dtype(dtype)], data)[0]
    return {"class": record.name, "attributes": describe(record.attributes)}


def forbid_reaching_out() -> None:
    """From here on this process opens no connection and starts no other process."""

    def refuse(event: str, _: object) -> None:
        if event.startswith(REACHING_OUT):
            raise UnexpectedContentError(f"expected plain data, found an attempt at {event}")

    sys.addaudithook(refuse)


def main(file: str, folder: str) -> None:
    """Read one file into a folder; a failure ends with one line on stderr and exit code 1."""
    forbid_reaching_out()
    target = Path(folder)
    try:
        with Path(file).open("rb") as stream:
            found = describe(PlainUnpickler(stream, target).load())
    except UnexpectedContentError as error:
        sys.exit(str(error))
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.exit(f"expected a joblib file, found a damaged one ({type(error).__name__})")
    (target / VALUES_NAME).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
