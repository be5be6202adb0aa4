"""Data: the manifest that every script takes, the sets that are loaded from it, and where data come from."""

from diffcf.data.manifest import Manifest, ManifestRow, hash_split

__all__ = ["Manifest", "ManifestRow", "hash_split"]
