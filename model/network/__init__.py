"""The network of the paper: backbone, patches, the history reader and heads."""
