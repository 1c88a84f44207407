"""What the readers of weights raise because of the bytes of a file."""

import struct
import tokenize
import zipfile
import zlib

import msgpack
from safetensors import SafetensorError

# From zipfile, zlib, struct, NumPy, msgpack, safetensors and the readers here, whose errors are of the kind ValueError.
# Any other exception, such as a TypeError, is an error of the program: the file is not blamed.
DAMAGE_ERRORS = (
    ValueError,
    LookupError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,  # a method of compression or encryption
    SyntaxError,  # of a header that NumPy parses
    tokenize.TokenError,  # before Python 3.12 in place of SyntaxError
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    msgpack.UnpackException,
    SafetensorError,
)
