"""Storage: URIs, filesystems, credentials, atomic commit.

place      what everything above uses: folders and files by URI, on disk or in an object store
s3         the requests that it makes of an S3 store
remote     what it asks of fsspec, for other schemes
patience   which failures may pass, and how long they are waited for
"""

from bfp.storage.patience import repeats
from bfp.storage.place import Entry, Place, intact, left_by_a_kill, place, plainly

__all__ = ["Entry", "Place", "intact", "left_by_a_kill", "place", "plainly", "repeats"]
