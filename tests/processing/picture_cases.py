"""Pictures of every kind, each with the RGB that it must become by arithmetic on the samples it was written from.

``python tests/processing/picture_cases.py`` prints how many there are of each container, mode and depth, as a table.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import PIL.Image
from coded_picture_cases import avifs, coded_tiffs, jpeg2000s, jpegs, webps
from picture_arithmetic import HEIGHT, WIDTH, Case, lab_to_rgb, samples, shown, ycc_to_rgb
from picture_writers import bmp, gif, packed, png, tiff

# TIFF's photometric and bits that Pillow reads of little-endian files alone.
UNKNOWN_OF_MM = ((0, 16), (1, 12), (1, 32))


def pngs() -> Iterator[Case]:
    for interlaced in (False, True):
        about = "interlaced" if interlaced else ""
        for bits in (1, 2, 4, 8, 16):
            grey, white = samples(bits), 2**bits - 1
            yield Case("PNG", "grey", f"{bits}", about, png(grey, bits, 0, interlaced=interlaced), shown(grey, white))
            for hidden in {0, white, int(grey[2, 3])}:
                yield Case("PNG", "grey tRNS", f"{bits}", f"{hidden} {about}",
                           png(grey, bits, 0, struct.pack(">H", hidden), interlaced=interlaced),
                           shown(grey, white, grey != hidden))
        for bits in (8, 16):
            rgb, white, near = samples(bits, 3), 2**bits - 1, 1 if bits == 16 else 0
            rgb[1, 1] = rgb[2, 2] = 0
            rgb[1, 2] = [0, 0, 1]
            if bits == 16:
                rgb[1, 3], rgb[1, 4] = [256, 512, 768], [511, 767, 1023]  # equal in one of the two bytes
            yield Case("PNG", "RGB", f"{bits}", about, png(rgb, bits, 2, interlaced=interlaced),
                       shown(rgb, white), near)
            for hidden in ((0, 0, 0), tuple(rgb[1, 3]), tuple(rgb[2, 3])):
                yield Case("PNG", "RGB tRNS", f"{bits}", f"{'/'.join(map(str, hidden))} {about}",
                           png(rgb, bits, 2, struct.pack(">3H", *hidden), interlaced=interlaced),
                           shown(rgb, white, (rgb != hidden).any(-1)), near)
            for channels, mode, colour in ((2, "grey+alpha", 4), (4, "RGBA", 6)):
                values = samples(bits, channels)
                flat = values[..., 0] if channels == 2 else values[..., :3]
                yield Case("PNG", mode, f"{bits}", about, png(values, bits, colour, interlaced=interlaced),
                           shown(flat, white, values[..., -1] / white), 1 + near)
        for bits in (1, 2, 4, 8):
            indices, colours = samples(bits), np.random.default_rng(1).integers(0, 256, (2**bits, 3), dtype=np.uint8)
            plte = colours.tobytes()
            yield Case("PNG", "palette", f"{bits}", about, png(indices, bits, 3, b"", plte, interlaced),
                       colours[indices])
            last, each = bytes([255] * (2**bits - 1) + [0]), bytes(7 * index % 256 for index in range(1, 2**bits))
            for kind, trns in (("one", last), ("each", each), ("first", b"\0")):
                alpha = np.frombuffer(trns.ljust(2**bits, b"\xff"), np.uint8)
                yield Case("PNG", "palette tRNS", f"{bits}", f"{kind} {about}",
                           png(indices, bits, 3, trns, plte, interlaced),
                           shown(colours[indices], 255, alpha[indices] / 255), 1)


def mild_ycc() -> np.ndarray:
    """YCbCr [H, W, 3] whose colours are within RGB."""
    return np.stack([samples(8) // 2 + 60, samples(8, seed=1) // 8 + 112, samples(8, seed=2) // 8 + 112], -1)


def tiffs() -> Iterator[Case]:
    size = (WIDTH, HEIGHT)
    for order, deflate in product("<>", (False, True)):
        about = f"{'II' if order == '<' else 'MM'}{' deflate' if deflate else ''}"

        def written(values, bits, photometric, tags=None, planar=False, order=order, deflate=deflate):
            planes = np.moveaxis(values, -1, 0) if planar else [values]
            count = values.shape[2] if values.ndim == 3 else 1
            data = [b"".join(packed(plane, bits, order)) for plane in planes]
            return tiff(data, size, [bits] * count, photometric, order, deflate,
                        {**(tags or {}), **({284: [2]} if planar else {})})

        for bits in (1, 2, 4, 8, 12, 16, 32):
            grey, white = samples(bits), 2**bits - 1
            for photometric, name in ((0, "WhiteIsZero"), (1, "BlackIsZero")):
                expected = shown(white - grey if photometric == 0 else grey, white)
                if (photometric == 0 and bits in (12, 32)) or (order == ">" and (photometric, bits) in UNKNOWN_OF_MM):
                    expected = "which is a combination Pillow does not know"
                yield Case("TIFF", name, f"{bits}", about, written(grey, bits, photometric), expected)
        for photometric, name in ((0, "WhiteIsZero"), (1, "BlackIsZero")):
            floats = (samples(8) / 255).astype(np.float32)
            data = [floats.astype(f"{order}f4").tobytes()]
            yield Case("TIFF", name, "float32", about, tiff(data, size, [32], photometric, order, deflate, {339: [3]}),
                       shown(1 - floats if photometric == 0 else floats, 1))
        for most in (255, 65535):  # as Pillow writes mode I; the least of the two that holds all values is white
            data = [(samples(8) * (most // 255)).astype(f"{order}i4").tobytes()]
            yield Case("TIFF", "BlackIsZero", "int32", f"to {most} {about}",
                       tiff(data, size, [32], 1, order, deflate, {339: [2]}), shown(samples(8), 255))
        for width in (16, 64):
            data = [(samples(8) / 255).astype(f"{order}f{width // 8}").tobytes()]
            yield Case("TIFF", "BlackIsZero", f"float{width}", about,
                       tiff(data, size, [width], 1, order, deflate, {339: [3]}), "float samples")
        for width in (8, 16):
            yield Case("TIFF", "BlackIsZero", f"int{width}", about,
                       written(samples(width - 1), width, 1, {339: [2]}), "signed")
        for planar, bits in product((False, True), (8, 16)):
            where, white = f"{'planar ' if planar else ''}{about}", 2**bits - 1
            rgb, rgba = samples(bits, 3), samples(bits, 4)
            near = 1 if bits == 16 else 0
            refused = "separate planes|does not know" if planar and not deflate else None
            deep = refused if bits == 16 else None
            yield Case("TIFF", "RGB", f"{bits}", where, written(rgb, bits, 2, None, planar),
                       deep or shown(rgb, white), near)
            alpha = rgba[..., 3:] / white
            premultiplied = np.concatenate([np.rint(rgba[..., :3] * alpha).astype(np.int64), rgba[..., 3:]], -1)
            yield Case("TIFF", "RGB+unspecified", f"{bits}", where, written(rgba, bits, 2, {338: [0]}, planar),
                       refused or shown(rgba[..., :3], white), near)
            yield Case("TIFF", "RGB+associated alpha", f"{bits}", where,
                       written(premultiplied, bits, 2, {338: [1]}, planar),
                       refused or shown(premultiplied[..., :3] / white + 1 - alpha, 1), 2)
            yield Case("TIFF", "RGB+unassociated alpha", f"{bits}", where, written(rgba, bits, 2, {338: [2]}, planar),
                       deep or shown(rgba[..., :3], white, alpha[..., 0]), 1 + near)
            cmyk = samples(bits, 4, seed=3)
            yield Case("TIFF", "CMYK", f"{bits}", where, written(cmyk, bits, 5, None, planar),
                       deep or shown((1 - cmyk[..., :3] / white) * (1 - cmyk[..., 3:] / white), 1), 1 + near)
        grey_alpha = samples(8, 2)
        for extra, name in ((0, "unspecified"), (1, "associated alpha"), (2, "unassociated alpha")):
            values = grey_alpha.copy()
            if extra == 1:
                values[..., 0] = values[..., 0] * values[..., 1] // 255
            expected = (shown(values[..., 0], 255) if extra == 0 else shown(values[..., 0], 255, values[..., 1] / 255)
                        if extra == 2 else shown((values[..., 0] + 255 - values[..., 1]) / 255, 1))
            yield Case("TIFF", f"grey+{name}", "8", about, written(values, 8, 1, {338: [extra]}), expected, 2)
        for bits in (1, 2, 4, 8):
            indices, colours = samples(bits), np.random.default_rng(1).integers(0, 256, (2**bits, 3))
            table = [int(value) * 257 for value in colours.T.ravel()]
            yield Case("TIFF", "palette", f"{bits}", about, written(indices, bits, 3, {320: table}),
                       colours[indices].astype(np.uint8))
        ycc = mild_ycc()
        yield Case("TIFF", "YCbCr", "8", about, written(ycc, 8, 6, {530: [1, 1]}), ycc_to_rgb(ycc), 2)
        lab = np.stack([samples(8) // 2 + 70, samples(8, seed=1) // 8 - 16, samples(8, seed=2) // 8 - 16], -1)
        yield Case("TIFF", "CIELab", "8", about, written(lab & 255, 8, 8),
                   lab_to_rgb(lab * [100 / 255, 1, 1]), 3)
    bilevel = samples(1)
    reversed_bits = [int(f"{byte:08b}"[::-1], 2) for byte in b"".join(packed(bilevel, 1))]
    yield Case("TIFF", "BlackIsZero", "1", "low bits first",
               tiff([bytes(reversed_bits)], size, [1], 1, tags={266: [2]}), shown(bilevel, 1))


def bmps() -> Iterator[Case]:
    size = (WIDTH, HEIGHT)
    random = np.random.default_rng(2)
    for bits, core, top_down in ((bits, *kind) for bits in (1, 4, 8) for kind in ((0, 0), (0, 1), (1, 0))):
        indices = samples(bits)
        about = "OS/2" if core else "top down" if top_down else ""
        colours = random.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        padded = colours[:, ::-1] if core else np.concatenate([colours[:, ::-1], colours[:, :1] * 0], -1)
        yield Case("BMP", "palette", f"{bits}", about,
                   bmp(packed(indices, bits, align=4), size, bits, padded.tobytes(), core=core, top_down=top_down),
                   colours[indices])
    for bits in (1, 4, 8):
        for name, greys in (("ramp", np.arange(2**bits) * 255 // (2**bits - 1)), ("few", np.array([0, 255])),
                            ("few reversed", np.array([255, 0])), ("low ramp", np.arange(2**bits))):
            indices = samples(bits).clip(0, len(greys) - 1)
            palette = np.stack([greys] * 3 + [greys * 0], -1).astype(np.uint8).tobytes()
            expected = np.stack([greys[indices]] * 3, -1).astype(np.uint8)
            refused = (name == "few" and bits > 1) or (name == "low ramp" and bits == 4)
            yield Case("BMP", f"grey palette, {name}", f"{bits}", "",
                       bmp(packed(indices, bits, align=4), size, bits, palette, colours=len(greys)),
                       f"a BMP of {bits} bits" if refused else expected)
    rgb5 = samples(5, 3)
    rgb565 = rgb5.copy()
    rgb565[..., 1] = samples(6)

    def fields(colours, shifts, masks=(0, 0, 0)):
        lines = packed((colours << shifts).sum(-1), 16, "<", 4)
        return bmp(lines, size, 16, compression=3, masks=masks) if any(masks) else bmp(lines, size, 16)

    yield Case("BMP", "RGB 555", "16", "", fields(rgb5, [10, 5, 0]), shown(rgb5, 31), 1)
    yield Case("BMP", "RGB 555", "16", "bitfields", fields(rgb5, [10, 5, 0], (0x7C00, 0x3E0, 0x1F)),
               shown(rgb5, 31), 1)
    yield Case("BMP", "RGB 565", "16", "bitfields",
               fields(rgb565, [11, 5, 0], (0xF800, 0x7E0, 0x1F)),
               shown(rgb565 / [31, 63, 31], 1), 1)
    yield Case("BMP", "RGB 444", "16", "bitfields", fields(samples(4, 3), [8, 4, 0], (0xF00, 0xF0, 0xF)),
               "cannot be decoded: Unsupported BMP bitfields layout")
    rgb = samples(8, 3)
    for top_down, core in ((False, False), (True, False), (False, True)):
        yield Case("BMP", "RGB", "24", "top down" if top_down else "OS/2" if core else "",
                   bmp(packed(rgb[..., ::-1], 8, align=4), size, 24, top_down=top_down, core=core), shown(rgb, 255))
    rgba = samples(8, 4)
    yield Case("BMP", "RGB+unused", "32", "", bmp(packed(rgba[..., [2, 1, 0, 3]], 8), size, 32),
               shown(rgba[..., :3], 255))
    for shifts in ([16, 8, 0], [24, 16, 8], [16, 8, 0, 24], [0, 8, 16, 24], [24, 16, 8, 0]):
        opaque = len(shifts) == 3
        pixels = (rgba[..., : len(shifts)] << shifts).sum(-1)
        masks = [255 << shift for shift in shifts] + [0] * opaque
        yield Case("BMP", "RGB" if opaque else "RGBA", "32", f"bitfields {'/'.join(map(str, shifts))}",
                   bmp(packed(pixels, 32, "<"), size, 32, compression=3, masks=masks),
                   shown(rgba[..., :3], 255, None if opaque else rgba[..., 3] / 255), 0 if opaque else 1)
    for bits in (4, 8):
        indices, colours = samples(bits), random.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        palette = np.concatenate([colours[:, ::-1], colours[:, :1] * 0], -1).tobytes()
        runs = [b"".join(bytes([1, index << (8 - bits)]) for index in row) + b"\0\0" for row in indices[::-1].tolist()]
        yield Case("BMP", "palette", f"{bits}", "run lengths",
                   bmp([*runs, b"\0\1"], size, bits, palette, compression=2 if bits == 4 else 1), colours[indices])


def netpbms() -> Iterator[Case]:
    head = f"{WIDTH} {HEIGHT}\n"

    def plain(values):
        return " ".join(map(str, values.ravel())).encode()

    bilevel = samples(1)
    for magic, data in (("P1", plain(bilevel)), ("P4", b"".join(packed(bilevel, 1)))):
        yield Case("PBM", "bilevel", "1", magic, f"{magic}\n{head}".encode() + data, shown(1 - bilevel, 1))
    for most, channels in product((1, 3, 15, 100, 255, 256, 1023, 4095, 65535), (0, 3)):
        values = (samples(16, channels) * most) // 65535
        wide = 16 if most > 255 else 8
        for magic, data in (("P3" if channels else "P2", plain(values)),
                            ("P6" if channels else "P5", b"".join(packed(values, wide)))):
            yield Case("PPM" if channels else "PGM", "RGB" if channels else "grey", f"0..{most}", magic,
                       f"{magic}\n# a comment\n{head}{most}\n".encode() + data, shown(values, most),
                       0 if most in (1, 255) else 1)
    for scale, order in ((1.0, ">"), (-1.0, "<"), (-255.0, "<"), (2.5, ">")):
        values = samples(8) / 255 * abs(scale)
        data = values[::-1].astype(f"{order}f4").tobytes()
        yield Case("PFM", "grey", "float32", f"scale {scale:g}", f"Pf\n{head}{scale}\n".encode() + data,
                   shown(values, abs(scale)))
    beyond = np.full((HEIGHT, WIDTH), 1.5, "<f4").tobytes()
    yield Case("PFM", "grey", "float32", "beyond white", f"Pf\n{head}-1\n".encode() + beyond, "white")
    yield Case("PFM", "RGB", "float32", "", f"PF\n{head}-1\n".encode() + beyond * 3, "a colour PFM")
    yield Case("PAM", "RGB", "8", "", b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\nabc", "a PAM")


def gifs() -> Iterator[Case]:
    colours = np.random.default_rng(3).integers(0, 256, (128, 3), dtype=np.uint8)
    greys = np.stack([np.arange(128, dtype=np.uint8)] * 3, -1)
    indices, size = samples(7), (WIDTH, HEIGHT)
    for interlaced in (False, True):
        about = "interlaced" if interlaced else ""
        for name, table in (("palette", colours), ("grey palette", greys)):
            content = table.tobytes()
            for place, tables in (("", {"table": content}), ("local", {"local": content}),
                                  ("local beside another", {"table": content[::-1], "local": content})):
                where = f"{place} {about}"
                yield Case("GIF", name, "7", where, gif(indices, size, interlaced=interlaced, **tables), table[indices])
                hidden = int(indices[2, 2])
                yield Case("GIF", f"{name} transparent", "7", where,
                           gif(indices, size, transparent=hidden, interlaced=interlaced, **tables),
                           shown(table[indices], 255, indices != hidden))
    for name, table in (("palette", colours), ("grey palette", greys)):
        framed = np.broadcast_to(table[77], (HEIGHT + 4, WIDTH + 5, 3)).copy()
        framed[1 : 1 + HEIGHT, 2 : 2 + WIDTH] = table[indices]
        yield Case("GIF", name, "7", "frame within its screen",
                   gif(indices, (WIDTH + 5, HEIGHT + 4), (2, 1), table.tobytes(), background=77), framed)
        bare, within = np.full_like(framed, 255), indices == 127
        bare[1 : 1 + HEIGHT, 2 : 2 + WIDTH] = table[indices]
        yield Case("GIF", name, "7", "frame within a screen without colours",
                   gif(indices, (WIDTH + 5, HEIGHT + 4), (2, 1), local=table.tobytes()), bare)
        seen = bare.copy()
        seen[1 : 1 + HEIGHT, 2 : 2 + WIDTH][within] = 255
        yield Case("GIF", f"{name} transparent", "7", "frame within its screen",
                   gif(indices, (WIDTH + 5, HEIGHT + 4), (2, 1), table.tobytes(), background=77, transparent=127), seen)


def cases() -> list[Case]:
    """All cases in containers that this Pillow reads: older ones lack AVIF."""
    PIL.Image.init()
    makers = [pngs, jpegs, webps, gifs, tiffs, coded_tiffs, bmps, netpbms, jpeg2000s]
    makers += [avifs] if "AVIF" in PIL.Image.OPEN else []
    return [case for make in makers for case in make()]


def table(listed: list[Case]) -> str:
    """Markdown: how many combinations of each container, mode and depth are compared, and how many refused."""
    rows: dict[tuple[str, str], tuple[Counter, Counter]] = {}
    for case in listed:
        counts = rows.setdefault((case.container, case.mode), (Counter(), Counter()))
        counts[isinstance(case.expected, str)][case.depth] += 1
    lines = ["| container | mode | read: bits (combinations) | refused |", "|---|---|---|---|"]
    lines += [f"| {container} | {mode} | {_counted(read)} | {_counted(refused)} |"
              for (container, mode), (read, refused) in rows.items()]
    refused = sum(isinstance(case.expected, str) for case in listed)
    return "\n".join([*lines, "", f"{len(listed)} combinations: {len(listed) - refused} compared, {refused} refused"])


def _counted(depths: Counter) -> str:
    return ", ".join(f"{depth} ({count})" for depth, count in depths.items())


if __name__ == "__main__":
    print(table(cases()))
