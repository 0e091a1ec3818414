"""paceline: from bare nodes to a fast, accepted MLPerf Inference Llama-2-70B result."""

__version__ = "0.1.0"

__all__ = ["__version__"]
