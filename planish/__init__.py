"""planish compiles a PyTorch or ONNX model for one hardware target."""
