"""The demo cohort: a BIDS dataset on real anatomy, made here, with the truth known.

    plan       who is in the cohort: group, age, severity, site, what is missing, what is broken (pure)
    anatomy    the ICBM152 template as shares of grey matter, white matter and fluid, and where disease acts on it
    warp       smooth invertible deformations: no two subjects share a brain
    tissue     one subject's brain: the template, thinned, widened, warped, with a tumour where the plan says so
    scanners   the sites: grid, orientation, storage and noise of each modality
    scans      what a scanner makes of a brain: contrast, bias field, noise, and the NIfTI file as bytes
    cohort     the dataset on disk: `make_cohort`

Nothing here is imported before `bfp demo` asks for it, and nothing else in bfp imports it: to the rest of the program
the demo cohort is a BIDS dataset like any other.
"""
