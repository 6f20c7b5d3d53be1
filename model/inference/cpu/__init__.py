"""The mixed-task forward on a CPU, compiled with numba."""
