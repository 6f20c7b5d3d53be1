"""The mixed-task forward: one batch over rows of many tasks, on a CPU or a GPU."""
