"""Storage: URIs, filesystems, credentials, atomic commit.

`place` is what everything above uses: folders and files by URI, on disk or in an object store.
"""

from bfp.storage.place import Entry, Place, intact, place, plainly

__all__ = ["Entry", "Place", "intact", "place", "plainly"]
