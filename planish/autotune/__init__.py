"""Search over kernels and compression choices: the store of measured times, which the choice of kernels reads."""
