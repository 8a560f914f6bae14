"""Backbones, classifier, export. `backbone_ref` and `onnx_classifier` load no torch."""
