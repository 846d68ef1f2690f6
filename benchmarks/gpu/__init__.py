"""The benchmark of GPU targets: kernels and layers of language models beside torch, on the GPU at hand."""
