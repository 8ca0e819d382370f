"""One inference of a local model. The door to onnxruntime."""
