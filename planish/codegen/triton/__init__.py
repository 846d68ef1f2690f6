"""GPU kernels in Triton: templates, their specialisation to calls, ahead-of-time compilation and choice."""
