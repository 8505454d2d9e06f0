"""Growing language models: "Stacking Your Transformers" (Du, Luo et al., NeurIPS 2024, arXiv 2405.15319)."""
