"""Files: tensors, backbone folders and the probes of a bundle."""
