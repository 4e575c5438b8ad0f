"""From a torch module, checkpoint or ONNX file to the typed graph."""
