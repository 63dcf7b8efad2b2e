"""NIfTI files to volumes and back: what the bytes say, refused where they cannot be believed.

NIfTI-1 and NIfTI-2, whole files (.nii) and pairs (.hdr and .img), plain or gzip (told by their first bytes, never by
their name), both byte orders, every real data type. The header is judged before a voxel is inflated. The orientation
follows the standard (https://nifti.nimh.nih.gov/nifti-1): the sform where its code is positive, else the qform, else
voxel sizes alone, and what is doubtful about it becomes a warning. Units other than millimetres are converted. Of a
4-D file one volume is made by a stated choice, or each, or none.

Arrays are (i, j, k) in Fortran order, as the file stores them: i is fastest. Identifying header fields (descrip,
aux_file, db_name, intent_name, extensions) are never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import deflate
import numpy as np
from nibabel.nifti1 import header_dtype as nifti1_dtype
from nibabel.nifti2 import header_dtype as nifti2_dtype
from nibabel.quaternions import quat2mat

from bfp.errors import Reason, Unusable
from bfp.imaging.grid import Grid
from bfp.imaging.inflate import check_intact, content_of, first_bytes

# 512³: half-millimetre voxels over a whole head; 0.5 GiB as float32.
MAX_VOXELS = 1 << 27
# Twice as many voxels of the widest type: no file needs to be read that is larger.
MAX_FILE_BYTES = 16 * MAX_VOXELS

OneVolume = Literal["refuse", "first", "mean"]
Volumes = Literal["refuse", "first", "mean", "each"]
"""What becomes of a 4-D file: it makes one volume or none (`decode`), or each of its own (`decode_each`)."""

_HEADER_DTYPES = {348: nifti1_dtype, 540: nifti2_dtype}
_REAL_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8",
    256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "single bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256",
    2304: "RGBA",
}  # fmt: skip
_INTENT_LABEL = 1002
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 0.001, 100.0
# The box along RAS around a volume: ten times a head with its neck and shoulders. A damaged spacing would make slices
# by the ten thousand, and registering such a volume takes seconds.
_LONGEST_EXTENT_MM, _LARGEST_FIELD_MM3 = 2000.0, 2.5e8
_LONGEST_EXTENSIONS = 1 << 24  # bytes between the header and the voxels
_LARGEST_VALUE = 1e30  # beyond it, arithmetic in float32 overflows: as good as not finite
# Values closer together than this, or than this share of the largest, are one value: float32 has no room for greys.
_SMALLEST_RANGE, _SMALLEST_SHARE = 1e-30, 2.0**-14
_QFORM_SFORM_TOLERANCE_MM = 1.0

NO_ORIENTATION = "the header says nothing of orientation (qform_code and sform_code are 0); RAS was assumed"
"""The warning of a volume whose grid is no more than a guess."""


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One decoded scan.

    stored: (i, j, k), read-only: the file's integers, or float32, already scaled and made finite (NaN and Inf are 0).
    slope, intercept: a stored number s stands for slope · s + intercept, in scanner units.
    header: the raw bytes of the header, 348 or 540 of them.
    form_distance_mm: how far apart qform and sform put the corners at most; None unless the file has both.
    warnings: what is doubtful, as sentences for a person.
    """

    stored: np.ndarray
    slope: float
    intercept: float
    grid: Grid
    header: bytes
    form_distance_mm: float | None
    warnings: tuple[str, ...]

    def scaled(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers of this volume, or averages of them, in scanner units: float32 of the same shape."""
        values = np.asarray(stored, dtype=np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            values = values * np.float32(self.slope) + np.float32(self.intercept)
        return values

    def unscaled(self, value: float) -> float:
        """The stored number that stands for a value in scanner units."""
        return (value - self.intercept) / self.slope


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The volumes of a file, one where it is 3-D: each is decoded when it is asked for, and none is kept.

    promised: what the header says of all of them. voxels: (i, j, k, n), the numbers as the file stores them.
    """

    promised: _Promised
    voxels: np.ndarray

    def __len__(self) -> int:
        return int(self.voxels.shape[3])

    def volume(self, number: int) -> Volume:
        """The volume of this number, from 0. Raises Unusable (EMPTY) where all of its voxels have one value."""
        volume = _volume(self.promised, self.voxels[..., number])
        _check_not_blank(volume)
        return volume


def decode(
    data: bytes | memoryview,
    *,
    voxels: bytes | memoryview | None = None,
    volumes: OneVolume = "refuse",
    may_be_blank: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """One volume from the bytes of a file, from at most `max_voxels` voxels.

    voxels: the bytes of the .img, where data are those of the .hdr of a pair. volumes: what becomes of a 4-D file:
    it is refused, its first volume is taken (the others are not looked at, nor gzip's checksum where it stands more
    than 1 MiB behind), or the mean of them all, in float32, of what is finite at each voxel. may_be_blank: for masks,
    where one value everywhere is an answer.
    Raises Unusable: NOT_NIFTI, TRUNCATED, CORRUPT, TOO_LARGE, NOT_3D, DATATYPE, GEOMETRY, EMPTY.
    """
    series = _series(data, voxels=voxels, volumes=volumes, max_voxels=max_voxels)
    volume = _mean(series) if len(series) > 1 else _volume(series.promised, series.voxels[..., 0])
    if not may_be_blank:
        _check_not_blank(volume)
    return volume


def decode_each(
    data: bytes | memoryview, *, voxels: bytes | memoryview | None = None, max_voxels: int = MAX_VOXELS
) -> Series:
    """All volumes of a file, of at most `max_voxels` voxels together. data, voxels and what is raised: as in `decode`,
    but that a volume is looked at when it is asked for."""
    return _series(data, voxels=voxels, volumes="each", max_voxels=max_voxels)


def encode(voxels: np.ndarray, *, grid: Grid, compress: bool = True) -> bytes:
    """A NIfTI-1 file of voxels (i, j, k), of any real dtype, on their grid: sform only, millimetres, gzip or plain."""
    dtype = voxels.dtype.newbyteorder("<")
    header = np.zeros((), nifti1_dtype.newbyteorder("<"))
    header["sizeof_hdr"] = 348
    header["magic"] = b"n+1"
    header["dim"] = [3, *voxels.shape, 1, 1, 1, 1]
    header["datatype"] = next(code for code, name in _REAL_TYPES.items() if np.dtype(name) == voxels.dtype)
    header["bitpix"] = dtype.itemsize * 8
    header["pixdim"] = [1, *grid.spacing_mm, 0, 0, 0, 0]
    header["vox_offset"] = 352
    header["scl_slope"] = 1
    header["xyzt_units"] = 2
    header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = grid.ras_from_voxel[row]
    content = header.tobytes() + bytes(4) + voxels.astype(dtype).tobytes(order="F")
    return bytes(deflate.gzip_compress(content, 6)) if compress else content


def header_of(data: bytes | memoryview, *, is_pair: bool = False) -> bytes:
    """The raw header, 348 or 540 bytes, from the first bytes of a file (of a pair: of its .hdr). Raises Unusable."""
    return _header(data, is_pair=is_pair)[1]


def encode_labels(labels: np.ndarray, *, header: bytes) -> bytes:
    """A file, gzipped, of labels (i, j, k), uint8 or uint16, on the voxels of a scan, with that scan's own header.

    header: raw, as of `Volume`. All that says where voxels lie stays as it is, to the bit and in its byte order: shape,
    pixdim, both forms and their codes, units. What said what the scan's numbers mean, and what may name a person, goes.
    """
    magic_at = 344 if len(header) == 348 else 4
    record, _ = _header(header, is_pair=header[magic_at : magic_at + 2] == b"ni")
    own = np.frombuffer(bytearray(header), record.dtype, count=1)[0]
    dtype = labels.dtype.newbyteorder(own.dtype["datatype"].byteorder)
    assert labels.shape == tuple(own["dim"][1:4]), f"labels of {labels.shape} on a scan of {own['dim'][1:4].tolist()}"
    if np.prod(own["dim"][4 : own["dim"][0] + 1]) > 1:
        own["dim"][0], own["dim"][4:] = 3, 1
    own["magic"] = b"n+1" if len(header) == 348 else b"n+2\0\r\n\x1a\n"
    own["datatype"] = next(code for code, name in _REAL_TYPES.items() if np.dtype(name) == labels.dtype)
    own["bitpix"] = dtype.itemsize * 8
    own["vox_offset"] = len(header) + 4
    own["scl_slope"], own["scl_inter"], own["cal_min"], own["cal_max"] = 1, 0, 0, 0
    own["intent_code"] = _INTENT_LABEL
    for name in ("descrip", "aux_file", "intent_name", "intent_p1", "intent_p2", "intent_p3"):
        own[name] = np.zeros((), own.dtype[name])
    for name in ("data_type", "db_name", "extents", "session_error", "regular", "glmax", "glmin"):
        if name in (own.dtype.names or ()):  # leftovers of ANALYZE, in NIfTI-1 alone
            own[name] = np.zeros((), own.dtype[name])
    return bytes(deflate.gzip_compress(own.tobytes() + bytes(4) + labels.astype(dtype).tobytes(order="F"), 6))


class _Promised(NamedTuple):
    """What a header says of the voxels: where they begin, how many volumes of them are to be read, what they mean."""

    header: bytes
    dtype: np.dtype
    offset: int
    volumes: int
    slope: float
    intercept: float
    grid: Grid
    form_distance_mm: float | None
    warnings: tuple[str, ...]


def _series(
    data: bytes | memoryview, *, voxels: bytes | memoryview | None, volumes: Volumes, max_voxels: int
) -> Series:
    """The volumes that are to be read. Raises Unusable."""
    try:
        promised = _promised(data, is_pair=voxels is not None, volumes=volumes, max_voxels=max_voxels)
    except Unusable:
        check_intact(data)  # what a damaged header says of itself is no reason: the damage is
        raise
    if voxels is not None:
        content_of(data, len(promised.header))  # its checksum too
    dtype, count = promised.dtype, promised.volumes * int(np.prod(promised.grid.shape))
    content = content_of(data if voxels is None else voxels, promised.offset + count * dtype.itemsize)
    stored = np.frombuffer(content, dtype, count=count, offset=promised.offset)
    return Series(promised, stored.reshape(*promised.grid.shape, promised.volumes, order="F"))


def _promised(data: bytes | memoryview, *, is_pair: bool, volumes: Volumes, max_voxels: int) -> _Promised:
    header, raw = _header(data, is_pair=is_pair)
    *shape, count = _shape(header, volumes=volumes, max_voxels=max_voxels)
    dtype = _dtype(header)
    slope, intercept = _scaling(header)
    grid, form_distance_mm, warnings = _geometry(header, (shape[0], shape[1], shape[2]))
    offset = _voxel_offset(header, at_least=0 if is_pair else len(raw) + 4)
    return _Promised(raw, dtype, offset, count, slope, intercept, grid, form_distance_mm, warnings)


def _header(data: bytes | memoryview, *, is_pair: bool) -> tuple[np.void, bytes]:
    """The header as a record in its own byte order, and its raw bytes."""
    start = first_bytes(data, 540)
    order: Literal["<", ">"]
    for order in ("<", ">"):
        length = int(np.frombuffer(start[:4], f"{order}i4", count=1)[0]) if len(start) >= 4 else 0
        if length in _HEADER_DTYPES:
            break
    else:
        raise Unusable(Reason.NOT_NIFTI, f"begins with {start[:4].hex(' ') or 'nothing'}, which is no NIfTI header")
    if len(start) < length:
        raise Unusable(Reason.TRUNCATED, f"{len(start)} bytes of a header of {length}")
    header = np.frombuffer(start, _HEADER_DTYPES[length].newbyteorder(order), count=1)[0]
    magic = bytes(header["magic"])[:3]
    if magic not in (b"n+1", b"n+2", b"ni1", b"ni2"):
        raise Unusable(Reason.NOT_NIFTI, f"magic {magic!r}, expected n+1 or n+2 (ANALYZE files are not read)")
    if is_pair and magic[1:2] == b"+":
        raise Unusable(Reason.NOT_NIFTI, f"magic {magic!r} of a whole file in the header of a pair; name it .nii")
    if not is_pair and magic[1:2] == b"i":
        expected = "name it .hdr and put the .img with its voxels beside it"
        raise Unusable(Reason.NOT_NIFTI, f"magic {magic!r} of the header of a pair in a file by itself; {expected}")
    return header, start[:length]


def _shape(header: np.void, *, volumes: Volumes, max_voxels: int) -> tuple[int, int, int, int]:
    """(i, j, k) and how many volumes of this shape are to be read."""
    rank = int(header["dim"][0])
    extents = [int(extent) for extent in header["dim"][1 : rank + 1]]
    if not 1 <= rank <= 7 or min(extents) < 1:
        raise Unusable(Reason.GEOMETRY, f"dim is {header['dim'].tolist()}")
    while len(extents) > 3 and extents[-1] == 1:
        extents.pop()
    if min(extents) == 1 or not 3 <= len(extents) <= 4:
        raise Unusable(Reason.NOT_3D, f"shape {tuple(extents)}{_singleton_means(extents)}")
    i, j, k, count = (*extents, 1)[:4]
    if count > 1 and volumes == "refuse":
        choices = (
            "`volumes: first` or `volumes: mean` makes one of those of a scan, `each` takes them all (form neighbours)"
        )
        raise Unusable(Reason.NOT_3D, f"shape {tuple(extents)}: {count} volumes; {choices}")
    if volumes == "first":
        count = 1
    if i * j * k * count > max_voxels:
        factors = " × ".join(map(str, (i, j, k, count)[: 3 + (count > 1)]))
        remedy = "; `volumes: first` reads one of them" if count > 1 else ""
        raise Unusable(
            Reason.TOO_LARGE, f"{factors} = {i * j * k * count:,} voxels; the limit is {max_voxels:,}{remedy}"
        )
    return i, j, k, count


def _singleton_means(extents: list[int]) -> str:
    """What an axis of one among the others says by the standard, which gives dim[4] to time and dim[5] to the values of
    a voxel: neither is a head in another order of axes, so neither is read as one. "" where nothing is to be said."""
    if len(extents) == 4 and extents[2] == 1:
        return f": one slice at {extents[3]} times"
    if len(extents) == 5 and extents[3] == 1 and min(extents[:3]) > 1:
        return f": {extents[4]} values at each voxel, as of a deformation or a tensor"
    return ""


def _dtype(header: np.void) -> np.dtype:
    code = int(header["datatype"])
    if code not in _REAL_TYPES:
        name = _OTHER_TYPES.get(code, "unknown")
        raise Unusable(Reason.DATATYPE, f"datatype {code} ({name}); expected integers or floats of up to 64 bits")
    order = header.dtype["datatype"].byteorder
    return np.dtype(_REAL_TYPES[code]).newbyteorder(order)


def _scaling(header: np.void) -> tuple[float, float]:
    """Slope and intercept; a slope of zero means none (the standard), and one that is not finite never meant any."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(intercept) or max(abs(slope), abs(intercept)) > 1e12 or abs(slope) < 1e-12:
        raise Unusable(Reason.DATATYPE, f"scl_slope {slope:g} and scl_inter {intercept:g} give no usable numbers")
    return slope, intercept


def _voxel_offset(header: np.void, *, at_least: int) -> int:
    """Where the voxels begin in their file; 0 is common in a whole one, where four bytes at least follow the header."""
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _LONGEST_EXTENSIONS:  # also false for NaN
        raise Unusable(Reason.NOT_NIFTI, f"vox_offset {offset:g}: no place where voxels could begin")
    return max(int(offset), at_least)


def _geometry(header: np.void, shape: tuple[int, int, int]) -> tuple[Grid, float | None, tuple[str, ...]]:
    """The grid by the standard's rules, the distance of qform and sform where both stand, and warnings.

    A sform that cannot be used gives way to a qform that can; nothing gives way to voxel sizes alone.
    """
    mm = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    in_mm = np.array([[mm], [mm], [mm], [1.0]])
    sform = in_mm * _sform(header) if header["sform_code"] > 0 else None
    qform = in_mm * _qform(header) if header["qform_code"] > 0 else None
    warnings: list[str] = []
    form_distance_mm = None
    if sform is not None and qform is not None and _is_usable(qform):
        affine = sform
        if not _is_usable(sform):
            affine = qform
            warnings.append("the sform cannot be used; the qform was taken")
        else:
            form_distance_mm = Grid(shape, sform).distance_mm(Grid(shape, qform))
            if form_distance_mm > _QFORM_SFORM_TOLERANCE_MM:
                warnings.append(f"qform and sform lie {form_distance_mm:.1f} mm apart; the sform was taken")
    elif sform is not None:
        affine = sform
    elif qform is not None:
        affine = qform
    else:
        affine = in_mm * np.diag([*np.abs(header["pixdim"][1:4]).astype(np.float64), 1.0])
        warnings.append(NO_ORIENTATION)
    if not _is_usable(affine):
        raise Unusable(Reason.GEOMETRY, f"voxel-to-millimetre matrix {np.round(affine[:3], 4).tolist()}")
    grid = Grid(shape, affine)
    extents_mm = np.ptp(grid.corners_ras(), axis=0)
    if extents_mm.max() > _LONGEST_EXTENT_MM or extents_mm.prod() > _LARGEST_FIELD_MM3:
        found = " × ".join(f"{extent:,.0f}" for extent in extents_mm)
        raise Unusable(Reason.GEOMETRY, f"{found} mm, far more than a head")
    return grid, form_distance_mm, tuple(warnings)


def _sform(header: np.void) -> np.ndarray:
    rows = [header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]]
    return np.array(rows, dtype=np.float64)


def _qform(header: np.void) -> np.ndarray:
    """The qform (standard, method 2): rotation from a quaternion, spacing from pixdim, the third axis turned by qfac.

    Not a number where the quaternion is none or a spacing is not positive.
    """
    spacing_mm = header["pixdim"][1:4].astype(np.float64)
    vector = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)
    affine = np.full((4, 4), np.nan)
    if np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)) and np.all(np.abs(vector) < 2):
        scalar_squared = 1 - float(vector @ vector)
        if scalar_squared > -1e-5:  # stored as float32, a turn by 180° may come out that much too long
            rotation = quat2mat([np.sqrt(max(scalar_squared, 0.0)), *vector])
            handedness = -1.0 if header["pixdim"][0] < 0 else 1.0
            affine = np.eye(4)
            affine[:3, :3] = rotation @ np.diag(spacing_mm * [1.0, 1.0, handedness])
            affine[:3, 3] = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]
    return affine


def _is_usable(affine: np.ndarray) -> bool:
    """Finite, with spacings that a head can have and axes that span the space."""
    if not np.all(np.isfinite(affine)) or np.abs(affine).max() > 1e6:
        return False
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() < _SMALLEST_SPACING_MM or spacing_mm.max() > _LARGEST_SPACING_MM:
        return False
    # The volume spanned by the unit axes: 1 when orthogonal. Below 0.2 two of them almost coincide.
    return abs(np.linalg.det(affine[:3, :3] / spacing_mm)) > 0.2


def _as_stored(promised: _Promised, stored: np.ndarray) -> Volume:
    return Volume(
        stored=stored.astype(promised.dtype.newbyteorder("="), order="K", copy=False),
        slope=promised.slope,
        intercept=promised.intercept,
        grid=promised.grid,
        header=promised.header,
        form_distance_mm=promised.form_distance_mm,
        warnings=promised.warnings,
    )


def _volume(promised: _Promised, stored: np.ndarray) -> Volume:
    """The volume of stored numbers (i, j, k), as the file holds them."""
    volume = _as_stored(promised, stored)
    if promised.dtype.kind == "f":
        volume = replace(volume, stored=_finite(volume), slope=1.0, intercept=0.0)
    volume.stored.setflags(write=False)
    return volume


def _check_not_blank(volume: Volume) -> None:
    """Raise Unusable (EMPTY) where all voxels have one value."""
    if _is_constant(volume):
        value = float(volume.scaled(volume.stored[0, 0, 0]))
        found = f"{value:g}" if value else f"zero, not finite or beyond {_LARGEST_VALUE:g}"
        raise Unusable(Reason.EMPTY, f"all {volume.stored.size:,} voxels are {found}")


def _is_constant(volume: Volume) -> bool:
    """Whether the voxels hold one value, as far as float32 can tell; a few voxels tell in most cases."""

    def is_one(stored: np.ndarray) -> bool:
        ends = volume.scaled(np.array([stored.min(), stored.max()])).astype(np.float64)
        return bool(np.ptp(ends) <= max(_SMALLEST_RANGE, _SMALLEST_SHARE * np.abs(ends).max()))

    return is_one(volume.stored[::8, ::8, ::8]) and is_one(volume.stored)


def _finite(volume: Volume) -> np.ndarray:
    values, usable = _values(volume, volume.stored)
    return values if usable.all() else np.where(usable, values, np.float32(0))


def _mean(series: Series) -> Volume:
    """float32, in scanner units: at each voxel the mean of what is finite in the volumes."""
    volume = _as_stored(series.promised, series.voxels[..., 0])
    total = np.zeros(volume.stored.shape, np.float32, order="F")
    seen = np.zeros(volume.stored.shape, np.float32, order="F")
    for stored in np.moveaxis(series.voxels, 3, 0):
        values, usable = _values(volume, stored)
        np.add(total, values, out=total, where=usable)
        seen += usable
    mean = total / np.maximum(seen, 1)
    mean.setflags(write=False)
    return replace(volume, stored=mean, slope=1.0, intercept=0.0)


def _values(volume: Volume, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored numbers in scanner units, and which of them are usable."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = volume.scaled(stored)
        return values, np.abs(values) < _LARGEST_VALUE
