"""What is kept on disk: tensors, backbone folders and the probes of a bundle."""
