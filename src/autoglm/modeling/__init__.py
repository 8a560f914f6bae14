"""Backbones, classifier, export. `backbone_ref` and `onnx_model` load no torch."""
