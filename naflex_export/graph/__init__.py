"""One model as a graph: traced, viewed, checked, translated to ONNX and rewritten."""
