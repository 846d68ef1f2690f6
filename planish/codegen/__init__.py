"""From a program to the files of an artifact: layout, fusion, selection, schedule, kernels."""
