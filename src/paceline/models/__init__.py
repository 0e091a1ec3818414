"""Checkpoints as files: fetched, checked, described. Needs no PyTorch.

shards     safetensors headers, and values that are no numbers
layout     the tensors that a config.json asks for
verify     a checkpoint against its config, its manifest and itself
describe   parameters, bytes, and what fits on which card
fetch      from a folder, the Hugging Face hub or MLCommons' storage
transfer   one file over HTTP: resumed, checked
"""

from paceline.models.describe import describe
from paceline.models.fetch import fetch, listing
from paceline.models.verify import verify, verify_headers, write_manifest

__all__ = ["describe", "fetch", "listing", "verify", "verify_headers", "write_manifest"]
