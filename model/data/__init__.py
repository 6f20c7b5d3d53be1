"""From files of events to training examples. This package does not import torch."""
