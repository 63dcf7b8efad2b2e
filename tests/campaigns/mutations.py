"""What can be wrong with a scan's file: each mutation makes one of a good scan, and knows what may become of it.

    Seed        a good scan: its plain content, and how it is stored (gzip or not, whole or as a pair)
    Mutant      the files of a damaged one, and the outcomes that are true of it: STACKS, or a reason of rejection
    MUTATIONS   name -> (seed, draw) -> Mutant

"First" is the choice for 4-D files unless a mutant says otherwise. Where the voxels or where they lie are arbitrary
after a mutation, stacks may come out of it or not: ARBITRARY.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import nibabel
import numpy as np
from isal import igzip
from nibabel.nifti1 import header_dtype as nifti1_dtype
from nibabel.nifti2 import header_dtype as nifti2_dtype

from bfp.errors import Reason
from bfp.imaging.nifti import Volumes
from tests.cohorts.makers import head

STACKS: Literal["stacks"] = "stacks"
Outcome = Reason | Literal["stacks"]
Draw = np.random.Generator

SHAPE = (22, 26, 20)
SPACING_MM = (8.0, 7.5, 9.0)
ARBITRARY: frozenset[Outcome] = frozenset({STACKS, Reason.NO_SLICES, Reason.EMPTY})
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Seed:
    """A good scan.

    content: the bytes of a whole, plain file; of a pair the header padded to 352 or 544 bytes, then the voxels.
    """

    name: str
    content: bytes
    zipped: bool
    is_pair: bool = False

    @property
    def order(self) -> Literal["<", ">"]:
        return "<" if int.from_bytes(self.content[:4], "little") in (348, 540) else ">"

    @property
    def fields(self) -> np.dtype:
        """The record of the header, in the file's byte order."""
        dtype = nifti2_dtype if 540 in (int.from_bytes(self.content[:4], end) for end in ("little", "big")) else None
        return (dtype or nifti1_dtype).newbyteorder(self.order)

    @property
    def header(self) -> np.void:
        return np.frombuffer(self.content, self.fields, count=1)[0]

    @property
    def offset(self) -> int:
        """Where the voxels begin in the content."""
        return max(int(self.header["vox_offset"]), self.fields.itemsize + 4)

    @property
    def dtype(self) -> np.dtype:
        return nibabel.nifti1.data_type_codes.dtype[int(self.header["datatype"])].newbyteorder(self.order)

    @property
    def is_series(self) -> bool:
        return int(self.header["dim"][0]) == 4

    @property
    def readable(self) -> frozenset[Outcome]:
        """What a fault behind the first volume may come to besides its reason: of a series that one is enough."""
        return frozenset({STACKS}) if self.is_series else frozenset()

    @property
    def unchecked(self) -> frozenset[Outcome]:
        """What else becomes of damage where the checksum is out of reach: it stands far behind the first volume."""
        return ARBITRARY if self.is_series and len(self.content) - self.offset > MIB else frozenset()

    def patched(self, **values: Any) -> bytes:
        """The content with fields of its header set."""
        content = bytearray(self.content)
        record = np.ndarray((), self.fields, buffer=content)
        for name, value in values.items():
            record[name] = value
        return bytes(content)

    def with_voxels(self, voxels: np.ndarray) -> bytes:
        """The content with other voxels, flat, of its own type."""
        return self.content[: self.offset] + voxels.astype(self.dtype).tobytes()

    def voxels(self) -> np.ndarray:
        return np.frombuffer(self.content, self.dtype, offset=self.offset).copy()

    def files(self, content: bytes | None = None, *, zip: Callable[[bytes], bytes] | None = None) -> dict[str, bytes]:
        """The content as it is stored, by file name; zip: how it is compressed, where it is not as usual."""
        content = self.content if content is None else content
        stored = zip or (zipped if self.zipped else bytes)
        end = ".gz" if self.zipped else ""
        if not self.is_pair:
            return {f"scan.nii{end}": stored(content)}
        at = self.fields.itemsize + 4
        return {f"scan.hdr{end}": stored(content[:at]), f"scan.img{end}": stored(content[at:])}


class Mutant(NamedTuple):
    """files: by name. admissible: the outcomes that are true of it. volumes: the choice for 4-D files."""

    files: dict[str, bytes]
    admissible: frozenset[Outcome]
    volumes: Volumes = "first"


Mutation = Callable[[Seed, Draw], Mutant]


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def one_of(draw: Draw, *choices: Any) -> Any:
    return choices[int(draw.integers(len(choices)))]


# seeds ----------------------------------------------------------------------------------------------------------------


def seeds() -> list[Seed]:
    """Heads of every real type, both orders, both versions, whole and in pairs, with and without what a header may."""
    tilted = nibabel.affines.from_matvec(
        nibabel.eulerangles.euler2mat(0.1, -0.2, 0.15) @ np.diag(SPACING_MM) @ np.diag([-1, 1, 1]), (80.0, -90.0, -85.0)
    )
    series = np.stack([head(SHAPE, seed=seed) for seed in range(3)], axis=3)
    return [
        _made("int16", "i2", "<", zipped=True),
        _made("int16-tilted-big", "i2", ">", affine=tilted),
        _made("uint8-scaled", "u1", "<", zipped=True, slope=(0.5, -3.0)),
        _made("int8", "i1", "<", zipped=True),
        _made("uint16-extension", "u2", "<", zipped=True, extension=b"DOE^JANE" * 40),
        _made("int32-nifti2", "i4", "<", version=2, slope=(2.0, 100.0)),
        _made("uint32-extension", "u4", ">", extension=b"comment"),
        _made("int64", "i8", "<", zipped=True),
        _made("uint64-nifti2", "u8", ">", version=2, zipped=True),
        _made("float32", "f4", "<"),
        _made("float64-nifti2-tilted", "f8", ">", version=2, zipped=True, affine=tilted),
        _made("series", "i2", "<", zipped=True, voxels=series),
        _made("series-float-big", "f4", ">", voxels=series),
        _made("pair", "i2", "<", is_pair=True),
        _made("pair-nifti2-big", "f4", ">", version=2, zipped=True, is_pair=True),
    ]


def _made(
    name: str,
    dtype: str,
    order: Literal["<", ">"],
    *,
    version: int = 1,
    zipped: bool = False,
    is_pair: bool = False,
    affine: np.ndarray | None = None,
    slope: tuple[float, float] = (1.0, 0.0),
    extension: bytes = b"",
    voxels: np.ndarray | None = None,
) -> Seed:
    voxels = head(SHAPE) if voxels is None else voxels
    voxels = voxels // 4 if dtype in ("u1", "i1") else voxels
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    if extension:
        header.extensions.append(nibabel.nifti1.Nifti1Extension(6, extension))
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(voxels.astype(dtype), affine, header)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    whole = Seed(name, image.to_bytes(), zipped)
    changes: dict[str, Any] = {"scl_slope": slope[0], "scl_inter": slope[1]}
    if is_pair:
        magic = b"ni1\0" if version == 1 else b"ni2\0\r\n\x1a\n"
        changes |= {"magic": np.frombuffer(magic, whole.fields["magic"])[0], "vox_offset": 0}
    return replace(whole, content=whole.patched(**changes), is_pair=is_pair)


def seed_of(name: str, data: bytes) -> Seed:
    """A seed of a real scan's file."""
    is_zipped = data[:2] == b"\x1f\x8b"
    return Seed(name, gzip.decompress(data) if is_zipped else data, is_zipped)


# what is stored -------------------------------------------------------------------------------------------------------


def cut(seed: Seed, draw: Draw) -> Mutant:
    files = seed.files()
    name = one_of(draw, *files)
    at = int(draw.integers(len(files[name])))
    told: set[Outcome] = {Reason.TRUNCATED, *seed.readable}
    if at < 4 and not name.endswith((".img", ".img.gz")):
        told |= {Reason.NOT_NIFTI}  # not enough is left to tell what it was
    if ".hdr" in name:
        told |= {STACKS}  # of a pair's header only what follows the fields may be gone
    return Mutant({**files, name: files[name][:at]}, frozenset(told))


def flipped_header(seed: Seed, draw: Draw) -> Mutant:
    """One to three bits of the plain header, each in a field drawn for itself, so that short fields are hit too."""
    content, told = bytearray(seed.content), {STACKS}
    for _ in range(draw.integers(1, 4)):
        name = one_of(draw, *seed.fields.names)
        dtype, at = seed.fields.fields[name][:2]
        bit = int(draw.integers(8 * dtype.itemsize))
        content[at + bit // 8] ^= 1 << bit % 8
        told |= OF_A_FIELD.get(name, frozenset())
    return Mutant(seed.files(bytes(content)), frozenset(told))


_PLACE: frozenset[Outcome] = ARBITRARY | {Reason.GEOMETRY}
OF_A_FIELD: dict[str, frozenset[Outcome]] = {
    "sizeof_hdr": frozenset({Reason.NOT_NIFTI}),
    "magic": frozenset({Reason.NOT_NIFTI}),
    "dim": _PLACE | {Reason.NOT_3D, Reason.TOO_LARGE, Reason.TRUNCATED},
    "datatype": ARBITRARY | {Reason.DATATYPE, Reason.TRUNCATED},
    "vox_offset": ARBITRARY | {Reason.NOT_NIFTI, Reason.TRUNCATED},
    "scl_slope": ARBITRARY | {Reason.DATATYPE},
    "scl_inter": ARBITRARY | {Reason.DATATYPE},
    **dict.fromkeys(
        [
            *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
            *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
        ],
        _PLACE,
    ),
}
"""What a wrong value in a field of the header may come to; every other field is never looked at."""


def flipped_voxels(seed: Seed, draw: Draw) -> Mutant:
    content = bytearray(seed.content)
    for at in draw.integers(seed.offset, len(content), draw.integers(1, 200)):
        content[at] ^= 1 << int(draw.integers(8))
    return Mutant(seed.files(bytes(content)), ARBITRARY)


def flipped_gzip(seed: Seed, draw: Draw) -> Mutant:
    """Bits of the compressed bytes: noticed, unless Python's gzip finds the same content (a time, a padding bit)."""
    files = seed.files(zip=zipped)
    name = one_of(draw, *files)
    data = bytearray(files[name])
    for at in draw.integers(len(data), size=draw.integers(1, 4)):
        data[at] ^= 1 << int(draw.integers(8))
    if data[:2] != b"\x1f\x8b":
        told = {Reason.TRUNCATED} if ".img" in name else {Reason.NOT_NIFTI}
        # a pair's voxels are any bytes, and long enough ones are voxels
        return Mutant({**files, name: bytes(data)}, ARBITRARY | told if ".img" in name else frozenset(told))
    told: set[Outcome] = {Reason.CORRUPT, Reason.TRUNCATED, *seed.unchecked}
    try:
        if gzip.decompress(data) == gzip.decompress(files[name]):
            told.add(STACKS)
    except (OSError, EOFError, zlib.error):
        pass
    return Mutant({**files, name: bytes(data)}, frozenset(told))


def wrong_trailer(seed: Seed, draw: Draw) -> Mutant:
    """gzip's checksum or length."""
    files = seed.files(zip=zipped)
    name = one_of(draw, *files)
    data = bytearray(files[name])
    data[-int(draw.integers(1, 9))] ^= 1 << int(draw.integers(8))
    return Mutant({**files, name: bytes(data)}, seed.unchecked | {Reason.CORRUPT})


def trailing_garbage(seed: Seed, draw: Draw) -> Mutant:
    garbage = one_of(draw, b"\x1f\x8b", b"", bytes(8)) + draw.bytes(int(draw.integers(1, 5000)))
    return Mutant({name: data + garbage for name, data in seed.files().items()}, frozenset({STACKS}))


def leading_garbage(seed: Seed, draw: Draw) -> Mutant:
    garbage = b"!" + draw.bytes(int(draw.integers(1, 50)))
    files = {name: garbage + data if ".img" not in name else data for name, data in seed.files().items()}
    return Mutant(files, frozenset({Reason.NOT_NIFTI}))


def several_members(seed: Seed, draw: Draw) -> Mutant:
    """One content in several gzip members, empty ones among them."""

    def zip(content: bytes) -> bytes:
        at = sorted(int(each) for each in draw.integers(0, len(content), draw.integers(1, 40)))
        pieces = [content[start:end] for start, end in zip_pairs([0, *at], [*at, len(content)])]
        empty = [b""] * int(draw.integers(3))
        return b"".join(map(zipped, [*empty, *pieces, *empty]))

    return Mutant(seed.files(zip=zip), frozenset({STACKS}))


def zip_pairs(starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    return list(zip(starts, ends, strict=True))


def flood_of_empty_members(seed: Seed, draw: Draw) -> Mutant:
    many = int(draw.integers(33_000, 60_000))
    return Mutant(seed.files(zip=lambda content: zipped(b"") * many + zipped(content)), frozenset({Reason.CORRUPT}))


def gzip_field(seed: Seed, draw: Draw) -> Mutant:
    """A name, a comment or an extra field in gzip's header, short and ended, very long, or without an end."""
    flag = one_of(draw, 0x08, 0x10, 0x04)
    ends, longest = one_of(draw, (True, 5000), (True, 3 * MIB), (False, 4 * MIB))
    size = int(draw.integers(1, longest))
    told: frozenset[Outcome] = frozenset({STACKS})
    if flag == 0x04:
        size = min(size, 65535)
        field = size.to_bytes(2, "little") + bytes(size)
    else:
        field = b"a" * size + b"\0" * ends
        if not ends:
            told = frozenset({Reason.TRUNCATED, Reason.CORRUPT})
        elif size > MIB - 2000:
            told = frozenset({STACKS, Reason.CORRUPT})

    def zip(content: bytes) -> bytes:
        plain = zipped(content)
        return plain[:3] + bytes([flag]) + plain[4:10] + field + (plain[10:] if ends or flag == 0x04 else b"")

    return Mutant(seed.files(zip=zip), told)


def bomb_behind(seed: Seed, draw: Draw) -> Mutant:
    """Far more than the header says."""
    zeros = bytes(int(draw.integers(1, 128)) * MIB)
    return Mutant(seed.files(zip=lambda content: bytes(igzip.compress(content + zeros, 1))), frozenset({STACKS}))


def bomb_alone(seed: Seed, draw: Draw) -> Mutant:
    bomb = bytes(igzip.compress(bytes(int(draw.integers(1, 128)) * MIB), 1))
    return Mutant({"scan.nii.gz": bomb}, frozenset({Reason.NOT_NIFTI}))


def bomb_as_promised(seed: Seed, draw: Draw) -> Mutant:
    """Nothing but zeros, and many of them, as the header says."""
    extents = [int(each) for each in draw.integers(60, 200, 3)]
    content = seed.patched(dim=[3, *extents, 1, 1, 1, 1], srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0])
    zeros = bytes(int(np.prod(extents)) * seed.dtype.itemsize)
    files = seed.files(content[: seed.offset] + zeros, zip=lambda each: bytes(igzip.compress(each, 1)))
    # zeros with an intercept are one value all the same
    return Mutant(files, frozenset({Reason.EMPTY}))


def bomb_beyond_the_limit(seed: Seed, draw: Draw) -> Mutant:
    extents = [int(each) for each in draw.integers(600, 32767, 3)]
    content = seed.patched(dim=[3, *extents, 1, 1, 1, 1]) + bytes(int(draw.integers(1, 64)) * MIB)
    zip = (lambda each: bytes(igzip.compress(each, 1))) if seed.zipped else None
    return Mutant(seed.files(content, zip=zip), frozenset({Reason.TOO_LARGE}))


def zipped_twice(seed: Seed, draw: Draw) -> Mutant:
    files = seed.files(zip=lambda content: zipped(zipped(content)))
    # a pair's voxels are any bytes: only too few of them are noticed
    return Mutant(files, frozenset({Reason.NOT_NIFTI}))


def other_ending(seed: Seed, draw: Draw) -> Mutant:
    """What is named .gz and is not, and the reverse."""
    zip = bytes if seed.zipped else zipped
    return Mutant(seed.files(zip=zip), frozenset({STACKS}))


def no_nifti(seed: Seed, draw: Draw) -> Mutant:
    kinds = {
        "nothing": b"",
        "zeros": bytes(5000),
        "noise": b"\0" + draw.bytes(5000),
        "text": b"subject,session\n" * 99,
        "png": b"\x89PNG\r\n\x1a\n" + draw.bytes(900),
        "dicom": bytes(128) + b"DICM" + draw.bytes(900),
        "pointer": b"../../.git/annex/objects/MD5E-s5--d41d8cd98f00b204e9800998ecf8427e.nii.gz",
        "bzip2": b"BZh91AY&SY" + draw.bytes(900),
        "zlib": zlib.compress(seed.content),
        "mgh": b"\0\0\0\1" + draw.bytes(900),
        "html": b"<!DOCTYPE html><title>403 Forbidden</title>",
        "gzip of nothing": zipped(b""),
    }
    return Mutant({"scan.nii.gz": kinds[one_of(draw, *kinds)]}, frozenset({Reason.NOT_NIFTI}))


def half_gone(seed: Seed, draw: Draw) -> Mutant:
    files = seed.files()
    if not seed.is_pair:
        return Mutant({name.replace(".nii", ".hdr"): data for name, data in files.items()}, frozenset({Reason.MISSING}))
    gone = one_of(draw, *files)
    return Mutant({name: data for name, data in files.items() if name != gone}, frozenset({Reason.MISSING}))


def halves_mixed_up(seed: Seed, draw: Draw) -> Mutant:
    """A pair whose files bear each other's names, or whose header is that of a whole file."""
    end = ".gz" if seed.zipped else ""
    first, second = replace(seed, is_pair=True).files().values()
    if not seed.is_pair:
        return Mutant({f"scan.hdr{end}": first, f"scan.img{end}": second}, frozenset({Reason.NOT_NIFTI}))
    return Mutant({f"scan.hdr{end}": second, f"scan.img{end}": first}, frozenset({Reason.NOT_NIFTI}))


NAMES = [
    " a scan with spaces ",
    "..",
    "..scan",
    "a\nnew\n\nline",
    "tab\tand\rreturn",
    "'quoted' \"twice\"",
    "back\\slash",
    "%2e%2e%2fscan%00",
    "#fragment?query=1&b",
    "{brace} [bracket] *star* ?",
    "-rf",
    "~",
    "$HOME `id` $(id)",
    "scan;id",
    "Gehirn-äöü-Gehirn",
    "Gehirn-a\u0308o\u0308",
    "脑部扫描",
    "🧠",
    "\u202escan.exe",
    "\u2028line\u2029",
    "\x01\x7f\x1b[31mred",
    "s3:",
    "file:",
    "n" * 240,
    "é" * 120,
]


def odd_name(seed: Seed, draw: Draw) -> Mutant:
    stem = one_of(draw, *NAMES) + one_of(draw, "", str(draw.integers(10)))
    return Mutant({name.replace("scan", stem): data for name, data in seed.files().items()}, frozenset({STACKS}))


def name_not_utf8(seed: Seed, draw: Draw) -> Mutant:
    stem = os.fsdecode(b"scan-" + one_of(draw, b"\xff\xfe", b"\xe4\xf6", b"\xc3", b"\xed\xa0\x80"))
    return Mutant({name.replace("scan", stem): data for name, data in seed.files().items()}, frozenset({Reason.NAME}))


# what the header says -------------------------------------------------------------------------------------------------


def patched(told: frozenset[Outcome], *choices: dict[str, Any]) -> Mutation:
    """A mutation that sets fields of the header to one of some values."""
    return lambda seed, draw: Mutant(seed.files(seed.patched(**one_of(draw, *choices))), told)


def wrong_size_of_header(seed: Seed, draw: Draw) -> Mutant:
    size = one_of(draw, 0, 1, 347, 349, -348, 2**31 - 1, int(draw.integers(600, 2**30)))
    return Mutant(seed.files(seed.patched(sizeof_hdr=size)), frozenset({Reason.NOT_NIFTI}))


def wrong_magic(seed: Seed, draw: Draw) -> Mutant:
    magic = one_of(draw, b"", b"n+3", b"N+1", b"ni3", b"\xff\xff\xff\xff", b"n+1" if seed.is_pair else b"ni1")
    return Mutant(seed.files(seed.patched(magic=magic)), frozenset({Reason.NOT_NIFTI}))


def wrong_extents(seed: Seed, draw: Draw) -> Mutant:
    dim = seed.header["dim"].copy()
    dim[int(draw.integers(1, 4))] = one_of(draw, 0, -1, -32768, -int(draw.integers(1, 3000)))
    return Mutant(seed.files(seed.patched(dim=dim)), frozenset({Reason.GEOMETRY}))


def wrong_rank(seed: Seed, draw: Draw) -> Mutant:
    dim = seed.header["dim"].copy()
    dim[0] = one_of(draw, 0, -1, 8, 300, -3, 32767)
    return Mutant(seed.files(seed.patched(dim=dim)), frozenset({Reason.GEOMETRY}))


def not_three_axes(seed: Seed, draw: Draw) -> Mutant:
    i, j, k = (int(each) for each in seed.header["dim"][1:4])
    dim = one_of(
        draw,
        [5, i, j, k, 1, 3, 1, 1],
        [5, i, j, k, 2, 2, 1, 1],
        [7, i, j, k, 1, 1, 1, 2],
        [2, i, j, 1, 1, 1, 1, 1],
        [1, i, 1, 1, 1, 1, 1, 1],
        [3, i, j, 1, 1, 1, 1, 1],
        [3, 1, j, k, 1, 1, 1, 1],
        [4, i, j, 1, k, 1, 1, 1],
    )
    return Mutant(seed.files(seed.patched(dim=dim)), frozenset({Reason.NOT_3D}))


def series_by_choice(seed: Seed, draw: Draw) -> Mutant:
    """Volumes of half the slices, twice as many; the last are missing, or not."""
    i, j, k = (int(each) for each in seed.header["dim"][1:4])
    volumes: Volumes = one_of(draw, "refuse", "first", "mean", "each")
    content = seed.patched(dim=[4, i, j, k // 2, 2, 1, 1, 1])
    used = seed.offset + i * j * (k // 2) * 2 * seed.dtype.itemsize
    is_cut = bool(draw.integers(2))
    content = content[: used - is_cut]
    if volumes == "refuse":
        return Mutant(seed.files(content), frozenset({Reason.NOT_3D}), volumes)
    is_short = is_cut and volumes != "first"
    return Mutant(seed.files(content), frozenset({Reason.TRUNCATED}) if is_short else ARBITRARY, volumes)


def singleton_axes(seed: Seed, draw: Draw) -> Mutant:
    dim = seed.header["dim"].copy()
    dim[int(dim[0]) + 1 :] = 1
    dim[0] = draw.integers(dim[0], 8)
    return Mutant(seed.files(seed.patched(dim=dim)), frozenset({STACKS}))


def more_voxels_than_there_are(seed: Seed, draw: Draw) -> Mutant:
    dim = seed.header["dim"].copy()
    dim[3] = dim[3] * dim[4] + int(draw.integers(1, 50))
    return Mutant(seed.files(seed.patched(dim=dim)), frozenset({Reason.TRUNCATED}))


def fewer_voxels_than_there_are(seed: Seed, draw: Draw) -> Mutant:
    dim = seed.header["dim"].copy()
    dim[1:4] = [int(draw.integers(2, extent + 1)) for extent in dim[1:4]]
    return Mutant(seed.files(seed.patched(dim=dim)), ARBITRARY)


def wrong_datatype(seed: Seed, draw: Draw) -> Mutant:
    code = one_of(draw, 0, 1, 32, 128, 1536, 1792, 2048, 2304, 3, 999, -1, 32767)
    return Mutant(seed.files(seed.patched(datatype=code)), frozenset({Reason.DATATYPE}))


def other_datatype(seed: Seed, draw: Draw) -> Mutant:
    """Another real type than the voxels have."""
    code = one_of(draw, 2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)
    wider = nibabel.nifti1.data_type_codes.dtype[code].itemsize > seed.dtype.itemsize
    told = frozenset({Reason.TRUNCATED}) | (ARBITRARY if seed.is_series else frozenset()) if wider else ARBITRARY
    return Mutant(seed.files(seed.patched(datatype=code, bitpix=0)), told)


def wrong_vox_offset(seed: Seed, draw: Draw) -> Mutant:
    is_float = seed.fields["vox_offset"].kind == "f"
    wild = (np.nan, np.inf, -np.inf, -1.0, 1e12, 3e38) if is_float else (-1, 2**40, 2**63 - 1, -(2**63))
    return Mutant(seed.files(seed.patched(vox_offset=one_of(draw, *wild))), frozenset({Reason.NOT_NIFTI}))


def vox_offset_behind_the_end(seed: Seed, draw: Draw) -> Mutant:
    at = len(seed.content) + int(draw.integers(0, 1 << 23))
    return Mutant(seed.files(seed.patched(vox_offset=at)), frozenset({Reason.TRUNCATED}))


def vox_offset_within_the_header(seed: Seed, draw: Draw) -> Mutant:
    plain = seed.offset == seed.fields.itemsize + 4 and not seed.is_pair
    # with an extension, or in a pair, it is another place than the voxels'; in a pair too few bytes are left
    told = frozenset({STACKS}) if plain else ARBITRARY | {Reason.TRUNCATED}
    return Mutant(seed.files(seed.patched(vox_offset=int(draw.integers(0, seed.fields.itemsize)))), told)


def broken_extensions(seed: Seed, draw: Draw) -> Mutant:
    """Extensions of no size, of a negative or a huge one, as a loop would be: they are stepped over by vox_offset."""
    size = one_of(draw, 0, -16, 8, 2**31 - 1, 16)
    at = seed.fields.itemsize
    room = int(draw.integers(2, 60)) * 16
    extension = b"\1\0\0\0" + (np.array([size, 6], f"{seed.order}i4").tobytes() * room)[: room - 4]
    content = seed.patched(vox_offset=0 if seed.is_pair else at + room)
    if seed.is_pair:
        names = list(seed.files())
        stored = zipped if seed.zipped else bytes
        files = {names[0]: stored(content[:at] + extension), names[1]: stored(content[at + 4 :])}
        return Mutant(files, frozenset({STACKS}))
    return Mutant(seed.files(content[:at] + extension + content[seed.offset :]), frozenset({STACKS}))


def nonsense_never_read(seed: Seed, draw: Draw) -> Mutant:
    """Every field that says nothing of voxels, geometry or kind."""
    content = bytearray(seed.content)
    for name, (dtype, at, *_) in seed.fields.fields.items():
        if name not in OF_A_FIELD:
            content[at : at + dtype.itemsize] = draw.bytes(dtype.itemsize)
    return Mutant(seed.files(bytes(content)), frozenset({STACKS}))


def other_byte_order(seed: Seed, draw: Draw) -> Mutant:
    """Only the first field is of the other order, and the rest is read in it."""
    size = seed.content[:4][::-1]
    told = _PLACE | {Reason.NOT_3D, Reason.TOO_LARGE, Reason.TRUNCATED, Reason.DATATYPE, Reason.NOT_NIFTI}
    return Mutant(seed.files(size + seed.content[4:]), told)


_FLAT = {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}
_TWICE = {"srow_x": [5, 5, 0, 0], "srow_y": [0, 0, 6, 0], "srow_z": [0, 0.1, 0, 0]}
_SHEARED = {"srow_x": [5, 5, 0, 0], "srow_y": [0, 0.5, 0, 0], "srow_z": [0, 0, 6, 0]}
_BAD_SFORMS = [
    _FLAT,
    _TWICE,
    _SHEARED,
    {"srow_x": [np.nan, 0, 0, 0]},
    {"srow_y": [0, np.inf, 0, 0]},
    {"srow_z": [0, 0, 1e30, 0]},
    {"srow_z": [0, 0, 0, 3e7]},
    {"srow_x": [1e-30, 0, 0, 0], "srow_y": [0, 1e-30, 0, 0], "srow_z": [0, 0, 1e-30, 0]},
    {"srow_x": [500, 0, 0, 0]},
]
_BAD_PIXDIMS = [
    {"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]},
    {"pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]},
    {"pixdim": [1, 1, 1, np.inf, 0, 0, 0, 0]},
    {"pixdim": [1, 1e30, 1, 1, 0, 0, 0, 0]},
    {"pixdim": [1, 1, 1e-30, 1, 0, 0, 0, 0]},
    {"pixdim": [1, 1, 1, 2000, 0, 0, 0, 0]},
]
_NEGATIVE = {"pixdim": [-1, -8, -7.5, -9, 0, 0, 0, 0]}
_BAD_QUATERNIONS = [
    {"quatern_b": 0.9, "quatern_c": 0.9, "quatern_d": 0.1},
    {"quatern_c": np.nan},
    {"quatern_d": np.inf},
    {"quatern_b": 3e38},
    {"qoffset_y": np.nan},
    {"qoffset_z": 1e20},
]
_NO_SFORM = {"sform_code": 0, "qform_code": 1}
_NO_QFORM = {"sform_code": 1, "qform_code": 0}
_NO_FORM = {"sform_code": 0, "qform_code": 0}
_UNUSABLE: frozenset[Outcome] = frozenset({Reason.GEOMETRY})
_FINE: frozenset[Outcome] = frozenset({STACKS})
_LARGE = [
    {"srow_x": [25, 0, 0, 0], "srow_y": [0, 30, 0, 0], "srow_z": [0, 0, 29, 0]},  # as much as is allowed
    {"srow_x": [17, 17, 0, 0], "srow_y": [-17, 17, 0, 0], "srow_z": [0, 9, 30, 0]},
    {"srow_x": [80, 0, 0, 0], "srow_y": [0, 90, 0, 0], "srow_z": [0, 0, 99, 0]},
]
_SMALL = [{"srow_x": [0.01, 0, 0, 0], "srow_y": [0, 0.01, 0, 0], "srow_z": [0, 0, 0.01, 0]}]


def negative_pixdim(seed: Seed, draw: Draw) -> Mutant:
    """Without a form their size counts, and not their sign."""
    return Mutant(seed.files(seed.patched(**_NO_FORM, pixdim=-np.abs(seed.header["pixdim"]))), _FINE)


# what the voxels hold -------------------------------------------------------------------------------------------------


def one_value(seed: Seed, draw: Draw) -> Mutant:
    voxels = seed.voxels()
    voxels[:] = one_of(draw, 0, 1, 7, *([np.nan, np.inf, 3e38, -1e-40] if seed.dtype.kind == "f" else []))
    return Mutant(seed.files(seed.with_voxels(voxels)), frozenset({Reason.EMPTY}))


def not_finite_here_and_there(seed: Seed, draw: Draw) -> Mutant:
    """NaN, infinities and what overflows, in up to a tenth of the voxels; of whole numbers, the extremes."""
    voxels = seed.voxels()
    some = draw.integers(0, voxels.size, draw.integers(1, voxels.size // 10))
    if seed.dtype.kind == "f":
        voxels[some] = draw.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e31], some.size)
        return Mutant(seed.files(seed.with_voxels(voxels)), frozenset({STACKS}))
    limits = np.iinfo(seed.dtype)
    voxels[some] = draw.choice(np.array([limits.min, limits.max], seed.dtype), some.size)
    return Mutant(seed.files(seed.with_voxels(voxels)), ARBITRARY)


def few_voxels(seed: Seed, draw: Draw) -> Mutant:
    voxels = np.zeros_like(seed.voxels())
    voxels[draw.integers(0, voxels.size, draw.integers(1, 20))] = 100
    return Mutant(seed.files(seed.with_voxels(voxels)), ARBITRARY)


def noise(seed: Seed, draw: Draw) -> Mutant:
    """Any bytes at all as voxels."""
    size = len(seed.content) - seed.offset
    return Mutant(seed.files(seed.content[: seed.offset] + draw.bytes(size)), ARBITRARY)


def scaled_to_extremes(seed: Seed, draw: Draw) -> Mutant:
    """Values so small, so large or so close together that single precision loses them."""
    slope, intercept = one_of(
        draw,
        (1e-11, 0.0),
        (1e11, 0.0),
        (-1.0, 0.0),
        (1.0, 1e11),
        (1e-11, 1e11),
        (-1e11, -1e11),
        (1.0, -1e4),
        (1e-9, 1.0),
    )
    content = seed.patched(scl_slope=slope, scl_inter=intercept)
    if seed.dtype.kind == "f":
        scale = float(one_of(draw, 1e-45, 1e-40, 1e-30, 1e25, 1.0))
        values = (seed.voxels().astype(np.float64) * scale).astype(seed.dtype)
        content = replace(seed, content=content).with_voxels(values)
    return Mutant(seed.files(content), ARBITRARY)


MUTATIONS: dict[str, Mutation] = {
    "cut anywhere": cut,
    "bits of the header": flipped_header,
    "bits of the voxels": flipped_voxels,
    "bits of the gzip": flipped_gzip,
    "wrong checksum or length": wrong_trailer,
    "trailing garbage": trailing_garbage,
    "leading garbage": leading_garbage,
    "several members": several_members,
    "flood of empty members": flood_of_empty_members,
    "gzip name, comment, extra": gzip_field,
    "bomb behind the voxels": bomb_behind,
    "bomb alone": bomb_alone,
    "bomb as promised": bomb_as_promised,
    "bomb beyond the limit": bomb_beyond_the_limit,
    "gzip twice": zipped_twice,
    ".nii that is gzip, reverse": other_ending,
    "no NIfTI": no_nifti,
    "half a pair": half_gone,
    "halves mixed up": halves_mixed_up,
    "odd name": odd_name,
    **({"name not UTF-8": name_not_utf8} if sys.platform != "darwin" else {}),  # whose file systems have no such names
    "sizeof_hdr": wrong_size_of_header,
    "magic": wrong_magic,
    "extents <= 0": wrong_extents,
    "rank": wrong_rank,
    "not three axes": not_three_axes,
    "4-D by choice": series_by_choice,
    "singleton axes": singleton_axes,
    "more voxels than there are": more_voxels_than_there_are,
    "fewer voxels than there are": fewer_voxels_than_there_are,
    "datatype of no real number": wrong_datatype,
    "datatype of others": other_datatype,
    "vox_offset wild": wrong_vox_offset,
    "vox_offset behind the end": vox_offset_behind_the_end,
    "vox_offset in the header": vox_offset_within_the_header,
    "extensions broken": broken_extensions,
    "fields never read": nonsense_never_read,
    "byte order of one field": other_byte_order,
    "sform bad, no qform": patched(_UNUSABLE, *({**_NO_QFORM, **bad} for bad in _BAD_SFORMS)),
    "sform bad, qform good": patched(_FINE, *_BAD_SFORMS),
    "qform bad, no sform": patched(_UNUSABLE, *({**_NO_SFORM, **bad} for bad in [*_BAD_QUATERNIONS, *_BAD_PIXDIMS])),
    "qform bad, sform good": patched(_FINE, *_BAD_QUATERNIONS, *_BAD_PIXDIMS, _NEGATIVE),
    "pixdim negative, qform": patched(_UNUSABLE, {**_NO_SFORM, **_NEGATIVE}),
    "pixdim negative, no form": negative_pixdim,
    "pixdim bad, no form": patched(_UNUSABLE, *({**_NO_FORM, **bad} for bad in _BAD_PIXDIMS)),
    "voxels of several cm": patched(_PLACE, *_LARGE),
    "voxels of 10 micrometres": patched(_PLACE, *_SMALL),
    "units": patched(_PLACE, {"xyzt_units": 1}, {"xyzt_units": 3}, {"xyzt_units": 7}, {"xyzt_units": 0}),
    "slope of none": patched(
        _FINE, *({"scl_slope": slope, "scl_inter": 5.0} for slope in (0.0, np.nan, np.inf, -np.inf))
    ),
    "slope or intercept unusable": patched(
        frozenset({Reason.DATATYPE}),
        {"scl_slope": 1e-30},
        {"scl_slope": 1e30},
        {"scl_slope": 2.0, "scl_inter": np.nan},
        {"scl_slope": 2.0, "scl_inter": -np.inf},
        {"scl_slope": 1.0, "scl_inter": 1e30},
    ),
    "one value": one_value,
    "not finite here and there": not_finite_here_and_there,
    "a few voxels": few_voxels,
    "noise": noise,
    "extreme scaling": scaled_to_extremes,
}
