"""The device mesh, the sharding of arrays, the processes of one run, device memory and the compilation cache."""
