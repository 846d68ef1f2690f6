"""The kernels themselves, as Triton reads them. A kernel is importable and runs in Triton's interpreter."""
