"""NIfTI: what nibabel reads, read alike; what nobody should believe, refused with its reason."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from io import BytesIO

import nibabel
import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.nifti import decode, decode_each, encode
from tests.imaging.makers import grid

SHAPE = (7, 5, 6)
VOXELS = np.random.default_rng(0).integers(0, 100, SHAPE)
AFFINE = grid(axes="PSR", shape=SHAPE, tilt_deg=(8, -5, 13)).ras_from_voxel


def file_of(image: nibabel.spatialimages.SpatialImage, *, zipped: bool = False) -> bytes:
    data = image.to_bytes()
    return gzip.compress(data) if zipped else data


def image_of(dtype: str, *, kind: type = nibabel.Nifti1Image) -> nibabel.spatialimages.SpatialImage:
    return kind(VOXELS.astype(dtype), AFFINE, dtype=np.dtype(dtype))


REAL_TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_real_type_reads_as_nibabel_reads_it(dtype: str, order: str, kind: type, zipped: bool) -> None:
    header = (nibabel.Nifti1Header if kind is nibabel.Nifti1Image else nibabel.Nifti2Header)(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = kind(VOXELS.astype(dtype), AFFINE, header)
    image.header.set_slope_inter(1, 0)
    volume = decode(file_of(image, zipped=zipped))
    np.testing.assert_array_equal(volume.scaled(volume.stored), np.asarray(image.dataobj, dtype=np.float32))
    np.testing.assert_allclose(volume.grid.ras_from_voxel, image.affine, atol=1e-5)
    assert volume.stored.dtype.isnative


@pytest.mark.parametrize("dtype", REAL_TYPES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize("zipped", [False, True])
def test_slope_and_intercept_give_scanner_units(dtype: str, order: str, kind: type, zipped: bool) -> None:
    header = kind(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = nibabel.Nifti1Image if kind is nibabel.Nifti1Header else nibabel.Nifti2Image
    data = bytearray(file_of(image(VOXELS.astype(dtype), AFFINE, header)))
    at, numbers = (112, f"{order}ff") if kind is nibabel.Nifti1Header else (176, f"{order}dd")
    struct.pack_into(numbers, data, at, 0.37, -12.5)
    volume = decode(gzip.compress(bytes(data)) if zipped else bytes(data))
    np.testing.assert_allclose(volume.scaled(volume.stored), VOXELS * 0.37 - 12.5, rtol=1e-5, atol=1e-4)
    assert volume.scaled(np.float32(volume.unscaled(7.25))) == pytest.approx(7.25)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_scales_nothing(slope: float) -> None:
    data = bytearray(file_of(image_of("i2")))
    struct.pack_into("<ff", data, 112, slope, 99.0)
    volume = decode(bytes(data))
    np.testing.assert_array_equal(volume.scaled(volume.stored), VOXELS)


def test_a_written_volume_comes_back_with_voxels_and_grid() -> None:
    native = grid(axes="AIL", shape=SHAPE, tilt_deg=(3, 20, -9))
    for dtype in REAL_TYPES:
        for compress in (False, True):
            data = encode(VOXELS.astype(dtype), grid=native, compress=compress)
            volume = decode(data)
            assert volume.stored.dtype == (dtype if dtype[0] != "f" else np.float32)
            np.testing.assert_array_equal(volume.stored, VOXELS)
            assert volume.grid.matches(native, tolerance_mm=1e-4)
    seen_by_nibabel = nibabel.Nifti1Image.from_bytes(encode(VOXELS.astype("i2"), grid=native, compress=False))
    np.testing.assert_allclose(seen_by_nibabel.affine, native.ras_from_voxel, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(seen_by_nibabel.dataobj), VOXELS)


def test_the_sform_goes_first_and_its_distance_from_the_qform_is_told() -> None:
    image = image_of("i2")
    moved = AFFINE.copy()
    moved[:3, 3] += [3.0, 0.0, 4.0]
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=1)
    volume = decode(file_of(image))
    np.testing.assert_allclose(volume.grid.ras_from_voxel, AFFINE, atol=1e-5)
    assert volume.form_distance_mm == pytest.approx(5.0, abs=1e-3)
    assert volume.warnings == ("qform and sform lie 5.0 mm apart; the sform was taken",)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SLA"])
def test_the_qform_is_taken_where_there_is_no_sform(axes: str) -> None:
    affine = grid(axes=axes, shape=SHAPE, spacing_mm=(0.9, 1.1, 3.0), tilt_deg=(14, 3, -21)).ras_from_voxel
    image = image_of("i2")
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    volume = decode(file_of(image))
    np.testing.assert_allclose(volume.grid.ras_from_voxel, affine, atol=1e-3)
    assert volume.form_distance_mm is None
    assert volume.warnings == ()


def test_a_header_without_orientation_is_read_with_a_warning() -> None:
    data = bytearray(file_of(image_of("i2")))
    struct.pack_into("<hh", data, 252, 0, 0)
    struct.pack_into("<3f", data, 80, 1.0, 2.0, 3.0)
    volume = decode(bytes(data))
    np.testing.assert_array_equal(volume.grid.ras_from_voxel, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert "says nothing of orientation" in volume.warnings[0]


def test_units_other_than_millimetres_are_converted() -> None:
    image = image_of("i2")
    image.header.set_xyzt_units("micron")
    image.set_sform(np.diag([900.0, 800.0, 700.0, 1.0]), code=1)
    image.set_qform(np.diag([900.0, 800.0, 700.0, 1.0]), code=1)
    image.header["qoffset_x"] = 3000
    volume = decode(file_of(image))
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.9, 0.8, 0.7))
    assert volume.form_distance_mm == pytest.approx(3.0)


SFORM, QFORM = np.diag([1.0, 2.0, 3.0, 1.0]), np.diag([2.0, 3.0, 1.0, 1.0])
FLAT, NOT_A_NUMBER, NO_TURN, TOO_LONG = (0.0,) * 12, (np.nan,) * 12, (0.0, 0.0, 0.0), (0.9, 0.9, 0.1)
FORMS = {
    # sform_code, qform_code, what is patched where -> the affine that is taken (None: GEOMETRY), what is warned of
    "both": ((1, 1, {}), "sform", "mm apart"),
    "both, of other codes": ((4, 3, {}), "sform", "mm apart"),
    "sform alone": ((2, 0, {}), "sform", ""),
    "qform alone": ((0, 2, {}), "qform", ""),
    "negative codes": ((-1, -5, {}), "pixdim", "nothing of orientation"),
    "neither": ((0, 0, {}), "pixdim", "nothing of orientation"),
    "neither, pixdim negative": ((0, 0, {80: (-2.0, -3.0)}), "pixdim", "nothing of orientation"),
    "neither, pixdim zero": ((0, 0, {80: (0.0,)}), None, ""),
    "neither, pixdim NaN": ((0, 0, {80: (np.nan,)}), None, ""),
    "a sform that is flat, and a qform": ((1, 1, {280: FLAT}), "qform", "the qform was taken"),
    "a sform of NaN, and a qform": ((1, 1, {280: NOT_A_NUMBER}), "qform", "the qform was taken"),
    "a sform that is flat alone": ((1, 0, {280: FLAT}), None, ""),
    "a sform, and a qform of NaN": ((1, 1, {256: (np.nan,)}), "sform", ""),
    "a sform, and a qform too long": ((1, 1, {256: TOO_LONG}), "sform", ""),
    "a sform, and pixdim negative": ((1, 1, {80: (-1.0,)}), "sform", ""),
    "neither can be used": ((1, 1, {280: FLAT, 256: TOO_LONG}), None, ""),
    "a qform of NaN alone": ((0, 1, {256: (np.nan,)}), None, ""),
    "a qform offset of inf": ((0, 1, {268: (np.inf,)}), None, ""),
    "a qform with a quaternion of zeros": ((0, 1, {256: NO_TURN}), "qform", ""),
    "a qform with qfac 0": ((0, 1, {76: (0.0,)}), "qform", ""),
    "a qform with qfac NaN": ((0, 1, {76: (np.nan,)}), "qform", ""),
    "a qform with a spacing of zero": ((0, 1, {88: (0.0,)}), None, ""),
}


@pytest.mark.parametrize("name", FORMS)
def test_orientation_follows_the_standard_for_every_pair_of_codes(name: str) -> None:
    (sform_code, qform_code, patches), taken, warned = FORMS[name]
    data = bytearray(file_of(image_of("i2")))
    struct.pack_into("<hh", data, 252, qform_code, sform_code)
    forms = {76: (1.0, *np.diag(QFORM)), 256: (*NO_TURN, 0.0, 0.0, 0.0), 280: tuple(SFORM[:3].ravel())}
    for at, values in [*forms.items(), *patches.items()]:
        struct.pack_into(f"<{len(values)}f", data, at, *values)
    if taken is None:
        with pytest.raises(Unusable) as caught:
            decode(bytes(data))
        assert caught.value.reason is Reason.GEOMETRY
        return
    volume = decode(bytes(data))
    np.testing.assert_array_equal(volume.grid.ras_from_voxel, SFORM if taken == "sform" else QFORM)
    assert [warned in warning for warning in volume.warnings] == [True] * bool(warned)
    assert (volume.form_distance_mm is not None) is (warned == "mm apart")


def test_what_is_not_finite_becomes_zero() -> None:
    values = VOXELS.astype("f4")
    values[1, 2, 3], values[0, 0, 0], values[4, 4, 4], values[2, 2, 2] = np.nan, np.inf, -np.inf, 3e38
    volume = decode(file_of(nibabel.Nifti1Image(values, AFFINE)))
    assert np.isfinite(volume.stored).all()
    assert volume.stored[1, 2, 3] == volume.stored[0, 0, 0] == volume.stored[2, 2, 2] == 0
    np.testing.assert_array_equal(volume.stored[5:], VOXELS[5:])


def test_trailing_singleton_axes_are_dropped() -> None:
    image = nibabel.Nifti1Image(VOXELS.astype("i2")[..., None, None], AFFINE)
    assert decode(file_of(image)).stored.shape == SHAPE


def pair(kind: type = nibabel.Nifti1Pair) -> tuple[bytes, bytes]:
    """The bytes of a header and of its voxels."""
    image = kind(VOXELS.astype("i2"), AFFINE)
    files = {"header": nibabel.FileHolder(fileobj=BytesIO()), "image": nibabel.FileHolder(fileobj=BytesIO())}
    image.to_file_map(files)
    return files["header"].fileobj.getvalue(), files["image"].fileobj.getvalue()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_reads_as_one_file_does(kind: type) -> None:
    header, voxels = pair(kind)
    for volume in (
        decode(header, voxels=voxels),
        decode(gzip.compress(header), voxels=gzip.compress(voxels)),
        decode(header, voxels=gzip.compress(voxels)),
    ):
        np.testing.assert_array_equal(volume.stored, VOXELS)
        np.testing.assert_allclose(volume.grid.ras_from_voxel, AFFINE, atol=1e-5)


def test_the_voxels_of_a_pair_begin_where_its_header_says() -> None:
    header, voxels = pair()
    moved = bytearray(header)
    struct.pack_into("<f", moved, 108, 16.0)
    np.testing.assert_array_equal(decode(bytes(moved), voxels=bytes(16) + voxels).stored, VOXELS)


@pytest.mark.parametrize(
    ("header", "voxels", "reason", "said"),
    [
        (pair()[0], pair()[1][:-1], Reason.TRUNCATED, "promises 420"),
        (pair()[0], gzip.compress(pair()[1])[:-1], Reason.TRUNCATED, ""),
        (pair()[0], b"", Reason.TRUNCATED, "0 bytes"),
        (file_of(image_of("i2")), pair()[1], Reason.NOT_NIFTI, "of a whole file in the header of a pair; name it .nii"),
    ],
    ids=["cut voxels", "cut gzip", "no voxels", "a whole file as its header"],
)
def test_a_pair_that_cannot_be_believed_is_refused(header: bytes, voxels: bytes, reason: Reason, said: str) -> None:
    with pytest.raises(Unusable) as caught:
        decode(header, voxels=voxels)
    assert caught.value.reason is reason
    assert said in caught.value.detail


def struct_packed(data: bytes, at: int, form: str, *values: object) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


SERIES = np.random.default_rng(1).integers(0, 100, (*SHAPE, 3))


@pytest.mark.parametrize("dtype", REAL_TYPES)
def test_of_a_series_the_first_volume_or_the_mean_is_made_by_choice(dtype: str) -> None:
    image = nibabel.Nifti1Image(SERIES.astype(dtype), AFFINE, dtype=np.dtype(dtype))
    data = bytearray(file_of(image))
    struct.pack_into("<ff", data, 112, 2.0, -3.0)
    first = decode(bytes(data), volumes="first")
    np.testing.assert_allclose(first.scaled(first.stored), SERIES[..., 0] * 2.0 - 3.0)
    mean = decode(bytes(data), volumes="mean")
    np.testing.assert_allclose(mean.scaled(mean.stored), SERIES.mean(axis=3) * 2.0 - 3.0, rtol=1e-5)
    np.testing.assert_allclose(mean.grid.ras_from_voxel, AFFINE, atol=1e-5)


def test_the_mean_of_a_series_is_of_what_is_finite() -> None:
    values = SERIES.astype("f4")
    values[1, 2, 3, 0], values[2, 2, 2, :] = np.nan, np.inf
    mean = decode(file_of(nibabel.Nifti1Image(values, AFFINE)), volumes="mean").stored
    assert mean[1, 2, 3] == SERIES[1, 2, 3, 1:].mean()
    assert mean[2, 2, 2] == 0


def test_a_choice_of_volume_leaves_a_single_one_as_it_is() -> None:
    for image in (image_of("i2"), nibabel.Nifti1Image(VOXELS.astype("i2")[..., None], AFFINE)):
        for volumes in ("first", "mean"):
            volume = decode(file_of(image), volumes=volumes)
            np.testing.assert_array_equal(volume.stored, VOXELS)
            assert volume.stored.dtype == np.int16


def test_of_a_series_only_what_is_wanted_is_read_and_counts() -> None:
    data = file_of(nibabel.Nifti1Image(SERIES.astype("i2"), AFFINE))
    first = 352 + 2 * VOXELS.size
    np.testing.assert_array_equal(decode(data[:first], volumes="first", max_voxels=210).stored, SERIES[..., 0])
    zipped = gzip.compress(data[:first]) + gzip.compress(data[first:])
    np.testing.assert_array_equal(decode(zipped, volumes="first").stored, SERIES[..., 0])
    with pytest.raises(Unusable) as caught:
        decode(data, volumes="mean", max_voxels=629)
    assert caught.value.detail == "7 × 5 × 6 × 3 = 630 voxels; the limit is 629; `volumes: first` reads one of them"
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert "3 volumes; `volumes: first` or `volumes: mean`" in caught.value.detail


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">f4", "f8"])
@pytest.mark.parametrize("how", ["plain", "gzip", "pair"])
def test_each_volume_of_a_series_is_what_it_would_be_by_itself(dtype: str, how: str) -> None:
    values = SERIES.astype(dtype)
    if values.dtype.kind == "f":
        values[1, 2, 3, 1] = np.nan
    together, *alone = (
        struct_packed(file_of(nibabel.Nifti1Image(each, AFFINE, dtype=each.dtype)), 112, "<ff", 2.0, -3.0)
        for each in (values, *np.moveaxis(values, 3, 0))
    )
    if how == "pair":
        together = struct_packed(together, 344, "4s", b"ni1\0")
        series = decode_each(struct_packed(together, 108, "<f", 0.0)[:352], voxels=together[352:])
    else:
        series = decode_each(gzip.compress(together) if how == "gzip" else together)
    assert len(series) == 3
    for number, data in enumerate(alone):
        volume, expected = series.volume(number), decode(data)
        np.testing.assert_array_equal(volume.stored, expected.stored)
        assert (volume.stored.dtype, volume.slope, volume.intercept) == (
            expected.stored.dtype,
            expected.slope,
            expected.intercept,
        )
        assert not volume.stored.flags.writeable
        np.testing.assert_array_equal(volume.grid.ras_from_voxel, expected.grid.ras_from_voxel)


def test_a_blank_volume_of_a_series_is_refused_when_it_is_asked_for() -> None:
    values = SERIES.astype("i2")
    values[..., 1] = 7
    series = decode_each(file_of(nibabel.Nifti1Image(values, AFFINE)))
    with pytest.raises(Unusable) as caught:
        series.volume(1)
    assert (caught.value.reason, caught.value.detail) == (Reason.EMPTY, "all 210 voxels are 7")
    np.testing.assert_array_equal(series.volume(2).stored, values[..., 2])


def test_each_volume_of_a_series_counts_towards_the_limit_and_must_be_there() -> None:
    data = file_of(nibabel.Nifti1Image(SERIES.astype("i2"), AFFINE))
    assert len(decode_each(data, max_voxels=630)) == 3
    for wrong, most, reason in ((data, 629, Reason.TOO_LARGE), (data[:-1], 630, Reason.TRUNCATED)):
        with pytest.raises(Unusable) as caught:
            decode_each(wrong, max_voxels=most)
        assert caught.value.reason is reason
    assert len(decode_each(file_of(image_of("i2")))) == 1


def test_extensions_are_stepped_over() -> None:
    image = image_of("i2")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"DOE^JANE" * 40))
    volume = decode(file_of(image))
    np.testing.assert_array_equal(volume.stored, VOXELS)
    assert b"DOE" not in volume.header


def test_gzip_is_told_by_its_bytes_and_may_come_in_members_with_garbage_behind() -> None:
    data = file_of(image_of("i2"))
    members = gzip.compress(data[:100]) + gzip.compress(data[100:500]) + gzip.compress(data[500:]) + b"\0garbage"
    np.testing.assert_array_equal(decode(members).stored, VOXELS)
    np.testing.assert_array_equal(decode(memoryview(data + b"garbage")).stored, VOXELS)


def test_a_blank_mask_is_an_answer_and_a_blank_scan_is_none() -> None:
    blank = encode(np.zeros(SHAPE, np.uint8), grid=grid(shape=SHAPE))
    assert not decode(blank, may_be_blank=True).stored.any()
    with pytest.raises(Unusable) as caught:
        decode(blank)
    assert caught.value.reason is Reason.EMPTY


def patched(offset: int, pattern: str, *values: float) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(file_of(image_of("i2")))
        struct.pack_into(pattern, data, offset, *values)
        return bytes(data)

    return make


def imaged(values: np.ndarray) -> Callable[[], bytes]:
    return lambda: file_of(nibabel.Nifti1Image(values, AFFINE))


def qform_only(offset: int, pattern: str, *values: float) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(patched(252, "<hh", 1, 0)())
        struct.pack_into(pattern, data, offset, *values)
        return bytes(data)

    return make


def rgb() -> bytes:
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return file_of(nibabel.Nifti1Image(colours, AFFINE))


REFUSED = {
    "nothing": (lambda: b"", Reason.NOT_NIFTI, "nothing"),
    "a text": (lambda: b"subject,session\n" * 99, Reason.NOT_NIFTI, "73 75 62 6a"),
    "half a header": (lambda: file_of(image_of("i2"))[:200], Reason.TRUNCATED, "200 bytes of a header of 348"),
    "half the voxels": (lambda: file_of(image_of("i2"))[:-100], Reason.TRUNCATED, "promises 772"),
    "half a gzip": (lambda: file_of(image_of("i2"), zipped=True)[:-90], Reason.TRUNCATED, ""),
    "a pair's header": (lambda: pair()[0], Reason.NOT_NIFTI, "put the .img with its voxels beside it"),
    "ANALYZE": (patched(344, "4s", b"\0\0\0\0"), Reason.NOT_NIFTI, "ANALYZE"),
    "rank 0": (patched(40, "<h", 0), Reason.GEOMETRY, "dim is"),
    "rank 300": (patched(40, "<h", 300), Reason.GEOMETRY, "dim is"),
    "a negative extent": (patched(44, "<h", -5), Reason.GEOMETRY, "dim is"),
    "a huge extent": (patched(42, "<hhh", 32000, 32000, 32000), Reason.TOO_LARGE, "the limit is"),
    "4-D": (imaged(np.ones((4, 5, 6, 2), "i2")), Reason.NOT_3D, "(4, 5, 6, 2)"),
    "5-D": (imaged(np.ones((4, 5, 6, 1, 3), "i2")), Reason.NOT_3D, "(4, 5, 6, 1, 3): 3 values at each voxel"),
    "a plane": (imaged(np.ones((4, 5), "i2")), Reason.NOT_3D, "(4, 5)"),
    "a series of slices": (imaged(np.ones((4, 5, 1, 6), "i2")), Reason.NOT_3D, "(4, 5, 1, 6): one slice at 6 times"),
    "one slice": (imaged(np.ones((4, 5, 1), "i2")), Reason.NOT_3D, "(4, 5, 1)"),
    "RGB": (rgb, Reason.DATATYPE, "RGB"),
    "complex": (imaged(np.ones(SHAPE, "c8")), Reason.DATATYPE, "complex64"),
    "unknown datatype": (patched(70, "<h", 999), Reason.DATATYPE, "999"),
    "intercept NaN": (patched(112, "<ff", 2.0, np.nan), Reason.DATATYPE, "scl_inter nan"),
    "a huge slope": (patched(112, "<ff", 1e30, 0.0), Reason.DATATYPE, "scl_slope 1e+30"),
    "vox_offset NaN": (patched(108, "<f", np.nan), Reason.NOT_NIFTI, "vox_offset nan"),
    "vox_offset inf": (patched(108, "<f", np.inf), Reason.NOT_NIFTI, "vox_offset inf"),
    "vox_offset huge": (patched(108, "<f", 1e12), Reason.NOT_NIFTI, "vox_offset 1e+12"),
    "vox_offset behind the end": (patched(108, "<f", 1e6), Reason.TRUNCATED, "promises"),
    "sform zero": (patched(280, "<12f", *[0.0] * 12), Reason.GEOMETRY, "matrix"),
    "sform NaN": (patched(284, "<f", np.nan), Reason.GEOMETRY, "nan"),
    "sform flat": (patched(280, "<12f", 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0), Reason.GEOMETRY, "matrix"),
    "quaternion too long": (qform_only(256, "<3f", 0.9, 0.9, 0.1), Reason.GEOMETRY, "nan"),
    "pixdim negative": (qform_only(80, "<f", -1.0), Reason.GEOMETRY, "nan"),
    "all NaN": (imaged(np.full(SHAPE, np.nan, "f4")), Reason.EMPTY, "210 voxels"),
    "all beyond what counts": (imaged(np.full(SHAPE, 3e38, "f4")), Reason.EMPTY, "zero, not finite or beyond 1e+30"),
    "one value": (imaged(np.full(SHAPE, 7, "i2")), Reason.EMPTY, "all 210 voxels are 7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_believed_is_refused_with_its_reason(name: str) -> None:
    make, reason, said = REFUSED[name]
    with pytest.raises(Unusable) as caught:
        decode(make())
    assert caught.value.reason is reason
    assert said in caught.value.detail


def test_a_volume_over_the_limit_is_refused_before_it_is_inflated() -> None:
    data = gzip.compress(file_of(image_of("i2"))[:352])  # no voxel follows
    with pytest.raises(Unusable) as caught:
        decode(data, max_voxels=209)
    assert caught.value.reason is Reason.TOO_LARGE
    assert "7 × 5 × 6 = 210 voxels; the limit is 209" in caught.value.detail


def test_damage_that_shows_in_the_header_is_called_damage() -> None:
    good = file_of(image_of("i2"))
    for at, value in ((0, 7), (43, 0x7F), (70, 99), (345, 0)):  # sizeof_hdr, dim, datatype, magic
        bad = bytearray(good)
        bad[at] = value
        damaged = gzip.compress(bytes(bad))[:-8] + gzip.compress(good)[-8:]  # the checksum of what it was
        with pytest.raises(Unusable) as caught:
            decode(damaged)
        assert caught.value.reason is Reason.CORRUPT
        with pytest.raises(Unusable) as caught:
            decode(gzip.compress(bytes(bad)))
        assert caught.value.reason not in (Reason.CORRUPT, Reason.TRUNCATED)


@pytest.mark.parametrize(
    ("spacing_mm", "said"),
    [
        ((5.0, 5.0, 30.0), ""),
        ((5.0, 5.0, 34.0), "25 × 35 × 2,006 mm, far more than a head"),
        ((100.0, 90.0, 13.0), ""),
        ((100.0, 90.0, 14.0), "500 × 630 × 826 mm, far more than a head"),
    ],
)
def test_a_volume_much_larger_than_a_head_has_no_geometry(spacing_mm: tuple[float, ...], said: str) -> None:
    long = np.random.default_rng(0).integers(0, 9, (6, 8, 60))
    data = file_of(nibabel.Nifti1Image(long.astype("i2"), np.diag([*spacing_mm, 1.0])))
    if not said:
        assert decode(data).grid.spacing_mm == spacing_mm
        return
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert (caught.value.reason, caught.value.detail) == (Reason.GEOMETRY, said)


@pytest.mark.parametrize(
    ("scale", "slope", "intercept", "is_one"),
    [
        (1, 1.0, 1e11, True),
        (1, 1e-10, 1e11, True),
        (1, 1.0, 1e5, False),
        (1e-33, 1.0, 0.0, True),
        (1, 1e-9, 0.0, False),
    ],
)
def test_values_that_single_precision_cannot_tell_apart_are_one_value(
    scale: float, slope: float, intercept: float, is_one: bool
) -> None:
    data = bytearray(file_of(nibabel.Nifti1Image((VOXELS * scale).astype("f8"), AFFINE)))
    struct.pack_into("<ff", data, 112, slope, intercept)
    if not is_one:
        assert np.unique(decode(bytes(data)).stored).size > 50
        return
    with pytest.raises(Unusable) as caught:
        decode(bytes(data))
    assert caught.value.reason is Reason.EMPTY


def test_seeded_damage_ends_in_a_volume_or_a_reason() -> None:
    """A slice of issue 4's mutants: bit flips and cuts of a plain and a zipped file."""
    random = np.random.default_rng(7)
    for seed in (file_of(image_of("i2")), file_of(image_of("f4", kind=nibabel.Nifti2Image), zipped=True)):
        for _ in range(400):
            data = bytearray(seed)
            for position in random.integers(0, min(len(data), 400), random.integers(1, 4)):
                data[position] ^= 1 << int(random.integers(8))
            try:
                volume = decode(bytes(data[: random.integers(1, len(data))] if random.random() < 0.2 else data))
            except Unusable:
                continue
            assert np.isfinite(volume.scaled(volume.stored)).all()
