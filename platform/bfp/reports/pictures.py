"""Pictures that a driver puts beside its results: slices of sessions, overlays of registration, views of a stack, maps
of patch tokens, what of a session told.

Arrays in, PNG bytes out: equal arrays give equal bytes. Slices lie as stacks hold them (`bfp.imaging.stacks`), and
`axis` says across which axis they were cut; their sides are lettered in every picture. Background is black, as on film,
and whatever has a colour can be told apart in grey too.

Letters: `n` slices, `C` channels (3), `s` size in pixels, `N` patches, `D` embedding width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from bfp.imaging.stacks import EDGES, SliceAxis
from bfp.reports.numbers import signed_text

CELL_PX = 128
GAP_PX = 4
TITLE_PX = 22
TEXT_PX = 13
PANELS_ACROSS = 2
VIEW_PX = 112
VIEWS_ACROSS = 9

INK = (235, 235, 235)
FAINT = (150, 150, 150)
ABSENT = (38, 38, 38)
DARKEST = 40  # of a map of tokens: black is where there is no head
DRAWN = (0, 160, 255)
EDGE = (255, 196, 0)  # light enough to stand out of brain in grey print
FOR, AGAINST = (255, 150, 0), (60, 150, 255)  # signs tell them apart in grey
STRONGEST_OPACITY = 0.8
DIMMED = 0.6  # a slice below colours
SIGNED_FROM = 0.4  # of the full colour: fainter patches carry no sign
BARS_PX = 52

_SIDES = {"A": "anterior", "S": "superior", "L": "the patient's left", "P": "posterior"}

FAINTEST_EDGE = 2.0  # grey levels a pixel; below is noise
FOREGROUND_OF_PATCH = 0.10  # a patch counts as head when its mean is above this share of its slice's 99th percentile


@dataclass(frozen=True, slots=True)
class SessionSlices:
    """Some slices of one session to look at.

    pixels: uint8 (n, C, s, s); channels: what each channel holds ("T1w"); present: False where it is only zeros.
    """

    title: str
    pixels: np.ndarray
    channels: tuple[str, ...]
    present: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two scans of a session on one grid, the same slice of both: uint8 (s, s)."""

    title: str
    reference: np.ndarray
    moving: np.ndarray


@dataclass(frozen=True, slots=True)
class View:
    """A stack, or a part of it, as something made of it shows it: uint8 (C, s, s)."""

    title: str
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class Outlined:
    """A slice with what was predicted on it: image uint8 (s, s); predicted, drawn: uint8 (s, s), 0 for none.

    drawn: what a person drew there; None where nobody did.
    """

    title: str
    image: np.ndarray
    predicted: np.ndarray
    drawn: np.ndarray | None


@dataclass(frozen=True, slots=True)
class TellingSlice:
    """A slice and by how much it, and each patch of it, speaks for something (above 0) or against it.

    name: which slice it is; pixels: uint8 (C, s, s); share: of the slice; effects: float (N,), patches in rows from the
    slice's first corner. place: among the `shares` of its session.
    """

    name: str
    pixels: np.ndarray
    share: float
    effects: np.ndarray
    place: int


@dataclass(frozen=True, slots=True)
class Told:
    """What of a session told. channels: of the slices, those that are there; shares: float (n,), of all its slices."""

    title: str
    channels: tuple[str, ...]
    slices: tuple[TellingSlice, ...]
    shares: np.ndarray


def orientation(axis: SliceAxis) -> str:
    """How slices lie, as a sentence for a picture's caption."""
    up, left = (_SIDES[EDGES[axis][edge]] for edge in ("top", "left"))
    return f"{up[0].upper()}{up[1:]} is up, {left} on the left."


def mosaic(sessions: Sequence[SessionSlices], *, axis: SliceAxis, cell_px: int = CELL_PX) -> bytes:
    """Sessions side by side: a panel each, a row for each channel, a column for each slice."""
    panels = [_session_panel(session, axis, cell_px) for session in sessions]
    return _png(_arrange(panels, across=PANELS_ACROSS))


def overlays(pairs: Sequence[Pair], *, axis: SliceAxis, cell_px: int = 2 * CELL_PX) -> bytes:
    """Whether registration is right: the moving scan's edges on the reference, and both as a chequerboard."""
    panels = []
    for pair in pairs:
        reference, moving = (_scaled(slice_, cell_px) for slice_ in (pair.reference, pair.moving))
        cells = [_with_edges(reference, edges(moving)), _cell(_chequered(reference, moving), cell_px)]
        panels.append(_panel(pair.title, [cells], axis=axis))
    return _png(_arrange(panels, across=PANELS_ACROSS))


def outlines(slices: Sequence[Outlined], *, axis: SliceAxis = "axial", cell_px: int = 2 * CELL_PX) -> bytes:
    """Each slice as it is, and beside it with the outlines of what was predicted and of what was drawn."""
    panels = []
    for own in slices:
        coloured = np.repeat(_scaled(own.image, cell_px)[..., None], 3, axis=2)
        for labels, colour in ((own.drawn, DRAWN), (own.predicted, EDGE)):  # the prediction on top
            if labels is not None:
                large = Image.fromarray(labels).resize((cell_px, cell_px), Image.Resampling.NEAREST)
                coloured[_borders(np.asarray(large))] = colour
        cells = [_cell(own.image, cell_px), Image.fromarray(coloured)]
        panels.append(_panel(own.title, [cells], axis=axis))
    return _png(_arrange(panels, across=PANELS_ACROSS))


def views(rows: Sequence[Sequence[View]], *, channels: Sequence[str], cell_px: int = VIEW_PX) -> bytes:
    """Views beside one another, each a column of its channels under its title; each row of them begins a new line.

    No sides are lettered: a view may be mirrored.
    """
    lines = [row[start : start + VIEWS_ACROSS] for row in rows for start in range(0, len(row), VIEWS_ACROSS)]
    panels = [
        [
            _view_panel(view, channels if number == 0 else [""] * len(channels), cell_px)
            for number, view in enumerate(line)
        ]
        for line in lines
    ]
    blank = Image.new("RGB", panels[0][0].size)
    longest = max(map(len, lines))
    filled = [panel for line in panels for panel in [*line, *[blank] * (longest - len(line))]]
    return _png(_arrange(filled, across=longest))


def telling(
    sessions: Sequence[Told], *, axis: SliceAxis, most_of_slice: float, most_of_patch: float, cell_px: int = CELL_PX
) -> bytes:
    """Sessions side by side: bars for the shares of all slices, then a column for each that is shown: its channels, and
    the first of them once more under the colours of its patches, orange with + for, blue with − against.

    most_of_slice, most_of_patch: what fills a bar and a patch; one for all pictures that are to be compared.
    """
    panels = [_told_panel(session, axis, cell_px, most_of_slice, most_of_patch) for session in sessions]
    return _png(_arrange(panels, across=PANELS_ACROSS))


def pca_maps(images: np.ndarray, tokens: np.ndarray, *, axis: SliceAxis, cell_px: int = CELL_PX) -> bytes:
    """What patch tokens tell apart: slices, the tokens' first three principal components as colours, the first alone.

    images: uint8 (n, s, s), one channel; tokens: float32 (n, N, D), patches in rows from the slice's first corner. The
    components are those of the patches that hold head, of all n slices together.
    """
    n, patches, _ = tokens.shape
    side = round(patches**0.5)
    assert side * side == patches, f"{patches} patches make no square"
    head = patch_foreground(images, side)  # (n, N)
    components, explained = principal_components(tokens, head)  # (n, N, 3)
    colours = np.where(head[..., None], components, 0).reshape(n, side, side, 3)
    rows = {
        "slices": [_cell(image, cell_px) for image in images],
        f"components 1–3 as red, green, blue ({explained.sum():.0%} of variance)": [
            _enlarged(colour, cell_px) for colour in colours
        ],
        f"component 1 alone ({explained[0]:.0%})": [
            _enlarged(np.repeat(colour[..., :1], 3, axis=2), cell_px) for colour in colours
        ],
    }
    return _png(_arrange([_panel(title, [cells], axis=axis) for title, cells in rows.items()], across=1))


# what is drawn ------------------------------------------------------------------------------------------------------


def edges(image: np.ndarray, *, sigma_px: float = 1.5, share: float = 0.5, shortest_px: int = 12) -> np.ndarray:
    """The clearest outlines of a slice, one pixel wide: bool, of the image's shape.

    Where the smoothed slice's gradient is a ridge across its own direction (Canny 1986, without the hysteresis). Of all
    ridges the strongest `share` is kept: of all pixels, those around the bright scalp would leave nothing of the brain.
    """
    down, right = np.gradient(ndimage.gaussian_filter(image.astype(np.float32), sigma_px))
    strength = np.hypot(down, right)
    length = np.maximum(strength, 1e-6)
    rows, columns = np.indices(image.shape, dtype=np.float32)
    before, after = (
        ndimage.map_coordinates(strength, [rows + way * down / length, columns + way * right / length], order=1)
        for way in (-1, 1)
    )
    ridge = (strength >= before) & (strength > after) & (strength > FAINTEST_EDGE)
    if ridge.any():
        ridge &= strength >= np.quantile(strength[ridge], 1 - share)
    pieces, _ = ndimage.label(ridge, structure=np.ones((3, 3)))
    return ridge & (np.bincount(pieces.ravel())[pieces] >= shortest_px)


def patch_foreground(images: np.ndarray, side: int) -> np.ndarray:
    """Which patches hold head: bool (n, side²), from uint8 (n, s, s) cut into side × side patches."""
    n, size = images.shape[:2]
    patch = size // side
    pixels = images[:, : side * patch, : side * patch].reshape(n, side, patch, side, patch)
    means = pixels.mean(axis=(2, 4))  # (n, side, side)
    bright = np.maximum(np.quantile(images.reshape(n, -1), 0.99, axis=1), 1.0)
    return (means > FOREGROUND_OF_PATCH * bright[:, None, None]).reshape(n, side * side)


def principal_components(tokens: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first three principal components of the chosen tokens, each scaled between its 2nd and 98th percentile.

    tokens: float32 (n, N, D); chosen: bool (n, N). Returns uint8 (n, N, 3), never as dark as the background, and the
    share of variance of each, (3,). A component's sign is that of its largest loading, so that it repeats.
    """
    some = tokens[chosen].astype(np.float64) if chosen.any() else tokens.reshape(-1, tokens.shape[2]).astype(np.float64)
    centre = some.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov(some - centre, rowvar=False, bias=True))
    order = np.argsort(spread)[::-1][:3]
    axes = axes[:, order]  # (D, 3)
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    low, high = np.percentile((some - centre) @ axes, [2, 98], axis=0)
    scaled = ((tokens - centre) @ axes - low) / np.maximum(high - low, 1e-12)
    share = np.maximum(spread[order], 0) / max(float(np.maximum(spread, 0).sum()), 1e-12)
    return (DARKEST + np.clip(scaled, 0, 1) * (255 - DARKEST)).astype(np.uint8), share


# the parts of a picture ---------------------------------------------------------------------------------------------


def _session_panel(session: SessionSlices, axis: SliceAxis, cell_px: int) -> Image.Image:
    rows = [
        [_cell(slice_[channel], cell_px) if there else _absent(cell_px) for slice_ in session.pixels]
        for channel, there in enumerate(session.present)
    ]
    return _panel(session.title, rows, axis=axis, row_names=session.channels, lettered=session.present)


def _told_panel(told: Told, axis: SliceAxis, cell_px: int, most_of_slice: float, most_of_patch: float) -> Image.Image:
    """The cells of the slices, with room for the bars between them and the title, and their names below."""
    rows = [[_cell(each.pixels[channel], cell_px) for each in told.slices] for channel in range(len(told.channels))]
    rows.append([_with_effects(each, cell_px, most_of_patch) for each in told.slices])
    names = (*told.channels, "patches")
    cells = _panel(told.title, rows, axis=axis, row_names=names, lettered=[True] * len(rows))
    panel = Image.new("RGB", (cells.width, cells.height + BARS_PX + TITLE_PX))
    panel.paste(cells.crop((0, 0, cells.width, TITLE_PX)), (0, 0))
    panel.paste(_bars(told, cells.width, most_of_slice), (0, TITLE_PX))
    panel.paste(cells.crop((0, TITLE_PX, cells.width, cells.height)), (0, TITLE_PX + BARS_PX))
    draw = ImageDraw.Draw(panel)
    for column, each in enumerate(told.slices):
        name = _shortened(f"{each.name}: {signed_text(each.share)}", cell_px)
        draw.text((column * (cell_px + GAP_PX), panel.height - TITLE_PX + 3), name, font=_font(), fill=INK)
    return panel


def _bars(told: Told, width_px: int, most: float) -> Image.Image:
    """A bar for each slice of a session, up for and down against; those that are shown have a mark below."""
    strip = Image.new("RGB", (width_px, BARS_PX))
    draw = ImageDraw.Draw(strip)
    room, middle, step = BARS_PX // 2 - 6, BARS_PX // 2 - 3, width_px / len(told.shares)
    draw.line((0, middle, width_px, middle), fill=FAINT)
    for place, share in enumerate(told.shares):
        left, right = round(place * step), max(round(place * step), round((place + 1) * step) - 2)
        length = round(room * min(1.0, abs(share) / most))
        top = middle - length if share > 0 else middle
        if length:
            draw.rectangle((left, top, right, top + length), fill=FOR if share > 0 else AGAINST)
        if any(each.place == place for each in told.slices):
            draw.rectangle((left, BARS_PX - 6, right, BARS_PX - 4), fill=INK)
    return strip


def _with_effects(each: TellingSlice, cell_px: int, most: float) -> Image.Image:
    """The first channel under the colours of its patches, and the signs of the strongest."""
    side = round(len(each.effects) ** 0.5)
    assert side * side == len(each.effects), f"{len(each.effects)} patches make no square"
    strength = np.clip(each.effects.reshape(side, side) / most, -1, 1)
    large = np.asarray(
        Image.fromarray(strength.astype(np.float32)).resize((cell_px, cell_px), Image.Resampling.NEAREST)
    )
    opacity = STRONGEST_OPACITY * np.abs(large)[..., None]
    colour = np.where(large[..., None] > 0, FOR, AGAINST)
    grey = DIMMED * _scaled(each.pixels[0], cell_px)[..., None]
    cell = Image.fromarray(np.round(grey * (1 - opacity) + colour * opacity).astype(np.uint8))
    draw = ImageDraw.Draw(cell)
    for row, column in zip(*np.nonzero(np.abs(strength) >= SIGNED_FROM), strict=True):
        x, y = (round((place + 0.5) * cell_px / side) for place in (column, row))
        arm = max(1, round(0.25 * cell_px / side))
        draw.line((x - arm, y, x + arm, y), fill="white")
        if strength[row, column] > 0:
            draw.line((x, y - arm, x, y + arm), fill="white")
    return cell


def _view_panel(view: View, names: Sequence[str], cell_px: int) -> Image.Image:
    cells = [[_cell(channel, cell_px)] for channel in view.pixels]
    return _panel(view.title, cells, axis=None, row_names=names, lettered=[True] * len(cells))


def _panel(
    title: str,
    rows: Sequence[Sequence[Image.Image]],
    *,
    axis: SliceAxis | None,
    row_names: Sequence[str] = ("",),
    lettered: Sequence[bool] = (True,),
) -> Image.Image:
    """Cells in rows under a title; the first cell of a row carries the letters and, in its corner, the row's name.

    axis: None for no letters.
    """
    cell_px = rows[0][0].width
    step = cell_px + GAP_PX
    panel = Image.new("RGB", (len(rows[0]) * step - GAP_PX, TITLE_PX + len(rows) * step - GAP_PX))
    draw = ImageDraw.Draw(panel)
    draw.text((0, 2), _shortened(title, panel.width), font=_font(), fill=INK)
    for row, (cells, name, with_letters) in enumerate(zip(rows, row_names, lettered, strict=True)):
        y = TITLE_PX + row * step
        for column, cell in enumerate(cells):
            panel.paste(cell, (column * step, y))
        if axis and with_letters:
            _letter(draw, y, cell_px, EDGES[axis])
        draw.text((3, y + 1), name, font=_font(), fill=INK, stroke_width=2, stroke_fill="black")
    return panel


def _letter(draw: ImageDraw.ImageDraw, y: int, cell_px: int, letters: Mapping[str, str]) -> None:
    """What lies at the left, the right and the top of the cell that starts at (0, y)."""
    middle = cell_px // 2
    left, right, top = ((3, y + middle), "lm"), ((cell_px - 3, y + middle), "rm"), ((middle, y + 2), "mt")
    for edge, (where, anchor) in (("left", left), ("right", right), ("top", top)):
        draw.text(where, letters[edge], font=_font(), fill=INK, anchor=anchor, stroke_width=2, stroke_fill="black")


def _absent(cell_px: int) -> Image.Image:
    cell = Image.new("RGB", (cell_px, cell_px), ABSENT)
    draw = ImageDraw.Draw(cell)
    draw.text((cell_px // 2, cell_px // 2), "absent", font=_font(), fill=FAINT, anchor="mm")
    return cell


def _with_edges(image: np.ndarray, outline: np.ndarray) -> Image.Image:
    colour = np.repeat(image[..., None], 3, axis=2)
    colour[outline] = EDGE
    return Image.fromarray(colour)


def _borders(labels: np.ndarray) -> np.ndarray:
    """Where a label ends: bool, the pixels whose right or lower neighbour has another."""
    borders = np.zeros(labels.shape, bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def _chequered(one: np.ndarray, other: np.ndarray, *, squares: int = 8) -> np.ndarray:
    rows, columns = np.indices(one.shape)
    side = -(-max(one.shape) // squares)
    return np.where((rows // side + columns // side) % 2 == 0, one, other)


def _arrange(panels: Sequence[Image.Image], across: int) -> Image.Image:
    """Panels in rows of `across`, each as large as the largest."""
    across = max(1, min(across, len(panels)))
    width, height = (max((getattr(panel, side) for panel in panels), default=1) for side in ("width", "height"))
    step_x, step_y = width + 4 * GAP_PX, height + 3 * GAP_PX
    sheet = Image.new("RGB", (across * step_x - 4 * GAP_PX, max(1, -(-len(panels) // across) * step_y - 3 * GAP_PX)))
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index % across * step_x, index // across * step_y))
    return sheet


def _cell(slice_: np.ndarray, cell_px: int) -> Image.Image:
    return Image.fromarray(_scaled(slice_, cell_px)).convert("RGB")


def _scaled(slice_: np.ndarray, cell_px: int) -> np.ndarray:
    """uint8 (s, s) at the cell's size: (cell_px, cell_px)."""
    return np.asarray(Image.fromarray(slice_).resize((cell_px, cell_px), Image.Resampling.LANCZOS))


def _enlarged(patches: np.ndarray, cell_px: int) -> Image.Image:
    """uint8 (side, side, 3) at the cell's size; patches keep their borders, since they are all that is known."""
    return Image.fromarray(patches).resize((cell_px, cell_px), Image.Resampling.NEAREST)


def _shortened(text: str, width_px: int) -> str:
    """The text, its middle left out where it would not fit."""
    if _font().getlength(text) <= width_px:
        return text
    keep = len(text)
    while keep > 2 and _font().getlength(text[: keep // 2] + "…" + text[-(keep // 2) :]) > width_px:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep // 2) :]


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships: the same on every machine, and it knows more than Latin letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), TEXT_PX)


def _png(picture: Image.Image) -> bytes:
    """As PNG bytes: grey ones as grey, which is a third of the size."""
    red, green, blue = (np.asarray(band) for band in picture.split())
    if np.array_equal(red, green) and np.array_equal(green, blue):
        picture = picture.convert("L")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
