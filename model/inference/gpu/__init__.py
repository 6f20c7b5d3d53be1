"""The mixed-task forward on an NVIDIA GPU, compiled with Triton."""
