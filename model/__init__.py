"""What is computed: the network, data, inference, training, parity and the study."""
