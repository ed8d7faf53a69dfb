"""Trained models as ONNX graphs, built by hand: what they compute is exactly what is written."""
