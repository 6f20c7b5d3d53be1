"""The Open Inference Protocol (KServe V2) over gRPC, in the event loop of each HTTP worker."""
