"""The device mesh, shardings, processes and device memory."""
