"""Messages between processes over a socket: a pickled value, followed by the contents of its arrays.

Neither shared memory nor a semaphore is involved. Both have names in /dev/shm, which a killed process leaves behind and
which fill up the 64 MB of a Docker container. The buffers of a socket disappear with the processes.
"""

import pickle
import socket
import struct

import numpy as np


def encode(value) -> list[memoryview]:
    """Returns the parts of the message that holds `value`, for `send`. Contiguous arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(content), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    return [memoryview(struct.pack(f"!{1 + len(sizes)}Q", len(sizes), *sizes)), *parts]


def send(connection: socket.socket, message: list[memoryview]) -> None:
    """Sends a message of `encode`. Waits until the peer has received most of it.

    Raises:
        ConnectionError: the peer has ended.
    """
    for part in message:
        connection.sendall(part)


def receive(connection: socket.socket):
    """Returns the value of the next message. Its arrays are new and may be written to.

    Raises:
        EOFError, ConnectionError: the peer has ended.
    """
    (count,) = struct.unpack("!Q", _receive_bytes(connection, 8))
    sizes = struct.unpack(f"!{count}Q", _receive_bytes(connection, 8 * count))
    content, *buffers = (_receive_bytes(connection, size) for size in sizes)
    return pickle.loads(content, buffers=buffers)


def _receive_bytes(connection, size) -> memoryview:
    content = memoryview(np.empty(size, np.uint8))
    received = 0
    while received < size:
        count = connection.recv_into(content[received:], flags=socket.MSG_WAITALL)
        if not count:
            raise EOFError("The peer has ended.")
        received += count
    return content
