"""Pictures: two decoders that agree, nothing broken passes, resizing as Pillow's, augmentation by passed draws."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tuwen.data import draws, images
from tuwen.data.corpus import BrokenImage

BICUBIC = Image.Resampling.BICUBIC


def picture(height=37, width=53, seed=0) -> Image.Image:
    """A smooth picture: what JPEG keeps."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def pixels(data: bytes) -> np.ndarray:
    image = images.decode(data)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


def difference(a, b) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def reason(call, *args, **options) -> str:
    with pytest.raises(BrokenImage) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


class TestDecode:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_orientation_as_pillow(self, kind, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(picture(), kind, exif=exif, **lossless)
        assert difference(pixels(data), by_pillow(data)) == 0

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": "4:4:4"}])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_jpeg_as_pillow(self, mode, options):
        data = encoded(picture().convert(mode), "JPEG", **options)
        assert difference(pixels(data), by_pillow(data)) <= 1

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000"])
    def test_other_formats(self, kind):
        data = encoded(picture(), kind)
        assert difference(pixels(data), by_pillow(data)) == 0

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_transparency_lies_on_white(self, mode):
        image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
        image.putpixel((1, 0), (200, 0, 0, 0))
        image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth black on white: 204
        if mode == "PA":
            image = image.crop((0, 0, 2, 1)).quantize(4)
        got = pixels(encoded(image.convert(mode) if mode == "LA" else image, "PNG"))
        assert got[0, 1].tolist() == [255, 255, 255]
        if mode != "PA":
            assert got[0, 2].tolist() == [204, 204, 204]

    def test_palette_with_a_transparent_colour(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        got = pixels(encoded(image, "PNG", transparency=1))
        assert got.tolist() == [[[10, 20, 30], [255, 255, 255]]]

    def test_sixteen_bits_are_scaled(self):
        values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
        got = pixels(encoded(Image.fromarray(values), "PNG"))
        assert got[0, :, 0].tolist() == [0, 1, 128, 255]

    def test_first_frame_of_an_animation(self):
        red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
        data = encoded(red, "GIF", save_all=True, append_images=[blue])
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]

    def test_harmless_oddities_of_jpeg(self):
        data = encoded(picture(), "JPEG")
        for filling in (b"\0" * 40, b"\xff" * 3):
            assert difference(pixels(data[:-2] + filling + data[-2:]), pixels(data)) == 0
        assert difference(pixels(data + b"appended by a phone"), pixels(data)) == 0
        exif = b"\xff\xe1\x00\x10Exif\x00\x00" + b"garbage!"
        assert difference(pixels(data[:2] + exif + data[2:]), pixels(data)) == 0


class TestBroken:
    def test_every_cut_of_a_jpeg_is_found(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        for options in ({}, {"progressive": True}, {"exif": exif, "quality": 95}):
            data = encoded(picture(), "JPEG", **options)
            for end in range(3, len(data)):
                for call in (images.decode, images.probe):
                    assert reason(call, data[:end]) in ("truncated", "damaged", "not a picture"), (options, end)

    def test_a_thumbnail_does_not_hide_a_cut(self):
        small, large = encoded(picture(8, 8), "JPEG"), encoded(picture(), "JPEG")
        block = b"Exif\x00\x00" + small
        data = large[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + large[2:]
        assert images.probe(data) == (37, 53)
        assert reason(images.probe, data[:-400]) == "truncated"
        assert reason(images.decode, data[:-400]) == "truncated"

    def test_a_jpeg_cut_and_closed_again(self):
        data = encoded(picture(200, 300), "JPEG")
        assert reason(images.decode, data[: len(data) // 2] + b"\xff\xd9") == "truncated"

    @pytest.mark.parametrize("progressive", [False, True])
    def test_nearly_every_damage_within_a_jpeg_is_found(self, progressive):
        generator = np.random.default_rng(0)
        noise = generator.normal(128, 90, (120, 120)).clip(0, 255).astype(np.uint8)
        whole = encoded(Image.fromarray(noise).convert("RGB"), "JPEG", progressive=progressive)
        found = 0
        for place in generator.integers(700, len(whole) - 500, size=60):
            data = bytearray(whole)
            del data[place : place + 300]
            with contextlib.suppress(BrokenImage):
                images.decode(bytes(data))
                found -= 1
            found += 1
        assert found >= 50  # a code that lost its step may end in step by chance

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000"])
    def test_half_of_other_formats(self, kind):
        data = encoded(picture(), kind)
        assert reason(images.decode, data[: len(data) // 2]) in ("truncated", "damaged")

    def test_every_damaged_byte_of_a_png_is_found(self):
        whole = encoded(picture(20, 20), "PNG")
        for place in range(8, len(whole)):
            data = bytearray(whole)
            data[place] ^= 0xFF
            assert reason(images.decode, bytes(data)) in images.REASONS

    def test_every_cut_of_a_png_is_found(self):
        whole = encoded(picture(20, 20), "PNG")
        for end in range(1, len(whole)):
            for call in (images.decode, images.probe):
                assert reason(call, whole[:end]) in ("truncated", "damaged", "not a picture")

    @pytest.mark.parametrize(
        "data", [b"hello", b"<html>", b"%PDF-1.4", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF"]
    )
    def test_not_pictures(self, data):
        assert reason(images.decode, data) in ("not a picture", "truncated", "damaged")
        assert reason(images.decode, b"") == "empty"

    def test_a_bomb_is_refused_from_its_header(self):
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        png += struct.pack(">I", 9) + b"IDAT" + bytes(13)
        assert reason(images.decode, png) == "too large"
        jpeg = bytearray(encoded(picture(), "JPEG"))
        frame = jpeg.find(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
        for call in (images.decode, images.probe):
            assert reason(call, bytes(jpeg)) == "too large"

    def test_the_limit_is_the_callers(self):
        for kind in ("JPEG", "PNG"):
            data = encoded(picture(10, 10), kind)
            assert images.decode(data, max_pixels=100).shape == (3, 10, 10)
            assert reason(images.decode, data, max_pixels=99) == "too large"

    @pytest.mark.filterwarnings("ignore:Metadata Warning")
    def test_random_damage_raises_nothing_else(self):
        generator = np.random.default_rng(0)
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
            whole = encoded(picture(), kind)
            for _ in range(60):
                data = bytearray(whole)
                for place in generator.integers(len(data), size=3):
                    data[place] = generator.integers(256)
                for call in (images.decode, images.probe):
                    with contextlib.suppress(BrokenImage):
                        call(bytes(data))

    def test_files(self, tmp_path):
        assert reason(images.read_file, tmp_path / "none.jpg") == "missing"
        assert reason(images.read_file, tmp_path) == "not a file"
        (tmp_path / "empty.jpg").touch()
        assert reason(images.read_file, tmp_path / "empty.jpg") == "empty"
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        assert reason(images.read_file, tmp_path / "loop.jpg") == "unreadable"
        assert reason(images.read_file, "a\0b") == "unreadable"

    def test_load_takes_what_users_have(self, tmp_path):
        image = picture()
        image.save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        expected = images.decode(data)
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, image, expected):
            assert torch.equal(images.load(source), expected)


class TestResize:
    @pytest.mark.parametrize("size", [(37, 53), (53, 37), (300, 201), (1, 90), (91, 2), (333, 500)])
    @pytest.mark.parametrize("target", [(32, 32), (224, 97), (1, 1), (61, 200)])
    def test_as_pillow_within_two_levels(self, size, target):
        noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        rows_first = Image.fromarray(noise).resize((target[1], size[0]), BICUBIC).resize(target[::-1], BICUBIC)
        got = images.resize(torch.from_numpy(noise).permute(2, 0, 1), target).permute(1, 2, 0).numpy()
        apart = np.abs(got.astype(int) - np.array(rows_first).astype(int))
        assert apart.max() <= 2
        assert (apart > 1).mean() < 1e-3

    def test_layout_in_memory_does_not_matter(self):
        image = torch.randint(0, 256, (3, 45, 67), dtype=torch.uint8)
        across = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert torch.equal(images.resize(image, (31, 80)), images.resize(across, (31, 80)))

    def test_shrink_keeps_the_aspect_and_never_enlarges(self):
        image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
        assert images.shrink(image, 40).shape == (3, 40, 60)
        assert images.shrink(image.transpose(1, 2), 40).shape == (3, 60, 40)
        assert images.shrink(image, 60) is image
        assert images.shrink(torch.zeros(3, 2, 9000, dtype=torch.uint8), 1).shape == (3, 1, 4500)


class TestAugment:
    def test_crop_is_the_drawn_window_resized(self):
        image = images.from_pillow(picture(120, 90))
        for row in range(20):
            generator = draws.generator("crop", row)
            top, left, height, width = images._draw_crop(
                120, 90, draws.generator("crop", row), (0.2, 0.7), (3 / 4, 4 / 3)
            )
            window = images.to_pillow(image).crop((left, top, left + width, top + height))
            expected = np.array(window.resize((32, 32), BICUBIC))
            got = images.random_resized_crop(image, 32, generator, scale=(0.2, 0.7))
            assert difference(got.permute(1, 2, 0).numpy(), expected) <= 1
            assert 0.19 < height * width / (120 * 90) < 0.72
            assert 0.73 < width / height < 1.37

    def test_crops_cover_the_scale_evenly(self):
        generator = draws.generator("areas")
        crops = [images._draw_crop(400, 400, generator, (0.5, 1.0), (1.0, 1.0)) for _ in range(2000)]
        areas = np.array([height * width / 160000 for _, _, height, width in crops])
        assert abs(areas.mean() - 0.75) < 0.015
        assert abs((areas < 0.6).mean() - 0.2) < 0.04

    @pytest.mark.parametrize(("size", "expected"), [((10, 300), (0, 143, 10, 13)), ((300, 10), (143, 0, 13, 10))])
    def test_long_pictures_fall_back_to_the_centre(self, size, expected):
        assert images._draw_crop(*size, draws.generator(0), (1.0, 1.0), (3 / 4, 4 / 3)) == expected

    def test_same_draws_same_picture(self):
        image = images.from_pillow(picture(64, 64))
        for n in range(8):
            one, two = (images.rand_augment(image, draws.generator(1, n)) for _ in range(2))
            assert torch.equal(one, two)

    def test_strengths(self):
        grey = Image.new("RGB", (40, 40), (100, 100, 100))
        grey.putpixel((20, 20), (0, 0, 0))
        apply = {
            name: lambda sign, f=f: np.array(f(grey, 0.7, sign)).astype(int)[..., 0]
            for name, f in images._OPERATIONS.items()
        }
        assert apply["Brightness"](1)[0, 0] == 136  # 0.1 + 1.8 * 0.7 = 1.36
        assert np.argwhere(apply["TranslateX"](1) == 0).tolist() == [[20, 13]]  # 7 pixels
        assert np.argwhere(apply["TranslateY"](-1) == 0).tolist() == [[27, 20]]
        assert (apply["TranslateX"](1)[:, -7:] == 128).all()
        sheared = apply["ShearX"](1)  # row y shifts by 0.21 y: the pixel of row 20 by 4.2
        assert 14 < np.average(np.arange(40), weights=100 - np.minimum(sheared[20], 100)) < 17
        assert (sheared[:, 0] == 100).all()
        assert apply["Rotate"](1)[0, 0] == 128
        assert (apply["Identity"](1) == np.array(grey)[..., 0]).all()

    def test_each_operation_is_applied_half_the_time(self):
        image = images.from_pillow(picture(16, 16))
        changed = np.mean(
            [not torch.equal(images.rand_augment(image, draws.generator(n), n=1), image) for n in range(600)]
        )
        assert abs(changed - 0.45) < 0.07  # a half of nine in ten, as identity changes nothing

    def test_no_colour_operation(self):
        grey = images.from_pillow(picture(24, 24).convert("L"))
        for n in range(100):
            red, green, blue = images.rand_augment(grey, draws.generator(n))
            assert torch.equal(red, green)
            assert torch.equal(green, blue)


def scanned(count: int, side=64, **options) -> bytes:
    """A progressive JPEG of so many scans, the last of its own again and again."""
    whole = encoded(picture(side, side), "JPEG", progressive=True, **options)
    own, last = whole.count(b"\xff\xda"), whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + (count - own) * last + b"\xff\xd9"


@pytest.mark.parametrize(
    ("count", "max_pixels", "fits"),
    [(500, images.MAX_PIXELS, True), (501, images.MAX_PIXELS, False), (16, 64 * 64, True), (17, 64 * 64, False)],
)
def test_a_jpegs_scans_are_counted_before_it_is_decoded(count, max_pixels, fits):
    for data in (scanned(count), scanned(count)[:2] + b"\xff\x01" + scanned(count)[2:]):  # a marker without length
        if fits:
            assert images.probe(data, max_pixels) == (64, 64)
            continue
        for read in (images.decode, images.probe):
            with pytest.raises(BrokenImage, match="scans") as raised:
                read(data, max_pixels)
            assert raised.value.reason == "too large"


def test_scans_of_what_pillow_alone_reads_are_counted_too():
    cmyk = encoded(picture().convert("CMYK"), "JPEG", progressive=True)
    images.decode(cmyk)
    last = cmyk[cmyk.rindex(b"\xff\xda") : -2]
    tiles = encoded(picture(), "TIFF", compression="jpeg")
    images.decode(tiles)
    for data in (cmyk[:-2] + 600 * last + b"\xff\xd9", tiles + 600 * b"\xff\xda\x00\x0c"):
        with pytest.raises(BrokenImage, match="scans"):
            images.decode(data)


def test_what_only_looks_like_scans_is_none():
    thumbnails = b"\xff\xe1" + (2 + 60_000).to_bytes(2, "big") + 30_000 * b"\xff\xda"
    data = encoded(picture(), "JPEG")
    assert images.decode(data[:2] + thumbnails + data[2:]).equal(images.decode(data))


def test_a_git_lfs_pointer_is_called_one():
    with pytest.raises(BrokenImage, match="git lfs pull"):
        images.decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")


def test_arrays_are_pictures_and_what_is_none_is_told_in_a_line():
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    taken = images.load(pixels)
    assert taken.shape == (3, 2, 4)
    assert taken[1, 0].tolist() == [1, 4, 7, 10]  # the greens of the first row
    assert images.load(pixels[:, ::-1])[1, 0].tolist() == [10, 7, 4, 1]
    assert torch.equal(images.load(images.to_pillow(taken)), taken)
    for wrong in (
        pixels[..., 0],
        pixels / 255,
        pixels[None],
        torch.rand(3, 2, 2),
        torch.zeros(2, 2, 3, dtype=torch.uint8),
    ):
        with pytest.raises(BrokenImage, match=r"of shape .*; give a") as told:
            images.load(wrong)
        assert len(str(told.value)) < 200
    for wrong in (None, 3, [pixels]):
        with pytest.raises(BrokenImage, match="give a path, encoded bytes"):
            images.load(wrong)
