"""bfp, the brain foundation platform: from NIfTI scans to foundation models of brain MRI, on Ray."""

__version__ = "0.1.0"
