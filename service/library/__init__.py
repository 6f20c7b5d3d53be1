"""What ``import peterrec`` gives: training, tasks and their answers as Python objects."""
