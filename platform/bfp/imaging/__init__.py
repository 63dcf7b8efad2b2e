"""One volume, from the bytes of a NIfTI file to stacks of slices, and from maps on slices back to the volume.

    nifti (inflate)   bytes -> Volume: voxels as stored, and their Grid
    grid              where voxels lie in the scanner's space
    foreground        what of a volume is head; from it the window, the crop and the choice of slices
    brain             what of a head is brain: a given mask, a skull-stripped scan, deepbet, a program
    mask_program      the brain by a program of the user's own
    register          how far the headers of two scans are off, and the rigid motion that mends it
    resample          voxels from one grid onto another, once
    bias_field        the smooth gain of the coil, and grey values without it
    window            grey values to bytes
    stacks            the recipe, the working grid of a session, and how pixels lie in a stack
    placing           where a scan goes in the space of its session's reference, and its window there
    label_maps        what was drawn on a scan: as slices, or as its brain mask
    session           all scans of a session -> stacks, label slices, facts
    native            maps on stacks -> a volume on a scan's own grid

Pure functions on arrays: no storage, no Ray, no torch, no specs. The same bytes give the same pixels in any process, as
far as a program of the user's does its part.
"""

# Part of the name of every shard: raise it whenever the pixels that come out change.
IMAGING_VERSION = 5

NEIGHBOURS = ("below", "centre", "above")
"""The channels of a stack of form `neighbours`."""

SHOWN_HEIGHTS = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Which of a head's stacks pictures show: 0 is the lowest, 1 the top."""
