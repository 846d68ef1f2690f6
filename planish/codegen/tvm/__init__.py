"""CPU kernels as TIR, compiled by TVM."""
