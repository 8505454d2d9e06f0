"""Generative space-time enhancement of video after He et al. 2024, "VEnhancer" (arXiv 2407.07667)."""
