"""Moving tasks to another backbone: the trainings of their bundles, repeated on it."""
