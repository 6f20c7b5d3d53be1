"""Device code: what the mixed forward calls where PyTorch's own choice is slower."""
