"""How far results are from exact ones: ours and PyTorch's, in every dtype.

``python -m benchmarks.accuracy`` (``make accuracy``) measures and writes ``docs/accuracy.md``.
"""
