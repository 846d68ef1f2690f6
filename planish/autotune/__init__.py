"""Search over kernels and compression choices; nothing is here yet."""
