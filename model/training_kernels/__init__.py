"""Training's arithmetic: products with gradients at oneDNN's rate, rows without padding."""
