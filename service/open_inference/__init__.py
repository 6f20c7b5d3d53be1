"""The Open Inference Protocol (KServe V2) apart from its transports: tensors in, tensors out."""
