"""Values that processes send each other."""

import socket
import threading

import numpy as np
import pytest

from input_pipeline.messages import encode, receive, send


@pytest.mark.quick
def test_values_arrive_whole_and_arrays_may_be_written_to():
    rng = np.random.default_rng(0)
    value = {
        "video": rng.integers(0, 256, (3, 400, 400, 3), np.uint8),  # larger than the buffer of a socket
        "view": np.arange(24.0).reshape(4, 6)[:, ::2],
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(0.5),
        "error": np.array([b"no video", b""], "S300"),
    }
    near, far = socket.socketpair()
    with near, far:
        sender = threading.Thread(target=lambda: [send(far, encode(value)), send(far, encode(ValueError("second")))])
        sender.start()
        received, second = receive(near), receive(near)
        sender.join()
    assert received.keys() == value.keys() and str(second) == "second"
    for name, expected in value.items():
        np.testing.assert_array_equal(received[name], expected)
        assert received[name].dtype == expected.dtype
    received["video"][:] = 0


@pytest.mark.quick
@pytest.mark.parametrize("size", [0, 5, 50])
def test_a_message_that_breaks_off_is_the_end_of_the_peer(size):
    near, far = socket.socketpair()
    with near:
        with far:
            far.sendall(b"".join(encode({"label": np.arange(9)}))[:size])
        with pytest.raises(EOFError, match="ended"):
            receive(near)
        with pytest.raises(ConnectionError):
            send(near, encode(1))
