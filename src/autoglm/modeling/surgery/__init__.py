"""Structure edits: layers, feed-forward, heads, hidden width, positions, LoRA (docs/structure.md).

`config.py` declares, `plan.py` refuses or agrees, `edit.py` does it; `lora.py` stands alone.
"""
