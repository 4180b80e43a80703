"""All decoders give the same pixels: exactly before the resize, nearly after it."""

import importlib.util
import io
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdaudit.sample import Decoder, Geometry

# shared/reference/stack.md, section 2: torch's uint8 antialiased resize against Pillow's, "1/0.00" over
# 400 x 300 photos. Portraits, where the order of the two passes changes the rounding in between, come to
# 0.24 each, and one pixel in some thousand images to 2: measured here over Caltech-101, GTSRB and MNIST.
TORCH_MAX, TORCH_MEAN, TORCH_IMAGE_MEAN = 2, 0.06, 0.4
# The same section: "DALI AA 9/0.16", at 400 x 300 -> 224. All of it is in the outermost row and column,
# where DALI repeats the border pixel and Pillow reweights those inside; it grows with the reduction.
DALI_INNER_MAX, DALI_MEAN = 1, 0.4


def upright_rgb(data: bytes) -> NDArray[np.uint8]:
    """What a careful user of Pillow gets, torchvision's default loader plus orientation."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def errors(got: NDArray[np.uint8], want: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(got.astype(np.int16) - want.astype(np.int16))


@pytest.fixture(scope="session")
def real(shared: Path) -> dict[str, list[bytes]]:
    """Photos, traffic signs, small colour JPEGs and digits, as they were delivered."""
    with tarfile.open(shared / "data/caltech101/shard-0000.tar") as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:480:8]
        photos = [tar.extractfile(member).read() for member in members]
    sets = {"caltech101": photos}
    for name in ("gtsrb", "cifar10", "mnist"):
        with pq.ParquetFile(shared / f"data/{name}/test.parquet") as file:
            batch = next(file.iter_batches(128, columns=["image"]))
        sets[name] = [row["bytes"] for row in batch.column("image").to_pylist()]
    return sets


def native(data: bytes) -> Geometry:
    height, width, _ = upright_rgb(data).shape
    return Geometry(height, width)


class TestDecodeOnly:
    def test_every_kind_of_file_is_exact(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            if name == "png 16-bit":
                continue  # Pillow's own conversion clips it: next test
            with Image.open(io.BytesIO(data)) as image:
                image.info.pop("transparency", None)
                want = np.array(ImageOps.exif_transpose(image).convert("RGB"))
            got = decoder.decode([data], Geometry(*want.shape[:2]))
            assert got.reasons == ("",), name
            assert got.pixels.dtype == np.uint8
            np.testing.assert_array_equal(got.pixels[0], want, err_msg=name)

    def test_sixteen_bits_are_scaled_not_clipped(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        data = files["png 16-bit"]
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "I;16"
            want = np.asarray(image) >> 8
        assert 60 < want.mean() < 200
        got = decoder.decode([data], Geometry(*want.shape))
        for channel in range(3):
            np.testing.assert_array_equal(got.pixels[0, :, :, channel], want)

    def test_real_files_are_exact(self, decoder: Decoder, real: dict[str, list[bytes]]) -> None:
        for name, encoded in real.items():
            for data in encoded[:40]:
                want = upright_rgb(data)
                got = decoder.decode([data], Geometry(*want.shape[:2]))
                np.testing.assert_array_equal(got.pixels[0], want, err_msg=name)

    def test_orientations_differ(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        turned = [files[f"jpeg turned {orientation}"] for orientation in range(1, 9)]
        pixels = decoder.decode(turned, Geometry(64, 64)).pixels
        assert len({row.tobytes() for row in pixels}) == 8

    def test_luma_is_pillows(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        for name in ("jpeg 420", "jpeg gray", "png rgb", "webp", "png turned 6"):
            rgb = upright_rgb(files[name])
            got = decoder.decode([files[name]], Geometry(*rgb.shape[:2], channels=1))
            assert got.pixels.shape == (1, *rgb.shape[:2], 1)
            np.testing.assert_array_equal(got.pixels[0, :, :, 0], np.asarray(Image.fromarray(rgb).convert("L")))


GEOMETRIES = [
    Geometry(224, 224),
    Geometry(224, 224, fit="crop"),
    Geometry(96, 160, fit="crop"),
    Geometry(48, 32),
    Geometry(32, 32, channels=1),
    Geometry(299, 299, channels=1, fit="crop"),
]


class TestResized:
    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
    def test_near_the_reference(
        self, fast: Decoder, reference: Decoder, files: dict[str, bytes], geometry: Geometry
    ) -> None:
        encoded = list(files.values())
        got, want = fast.decode(encoded, geometry), reference.decode(encoded, geometry)
        assert got.reasons == want.reasons == ("",) * len(encoded)
        error = errors(got.pixels, want.pixels)
        assert error.max() <= TORCH_MAX
        assert error.mean((1, 2, 3)).max() <= TORCH_IMAGE_MEAN

    @pytest.mark.parametrize("geometry", GEOMETRIES[:5], ids=str)
    def test_near_the_reference_on_real_files(
        self, fast: Decoder, reference: Decoder, real: dict[str, list[bytes]], geometry: Geometry
    ) -> None:
        for name, encoded in real.items():
            error = errors(fast.decode(encoded, geometry).pixels, reference.decode(encoded, geometry).pixels)
            assert error.max() <= TORCH_MAX, name
            assert error.mean() <= TORCH_MEAN, name

    def test_fast_decoders_are_equal(self, opened: Callable[..., Decoder], files: dict[str, bytes]) -> None:
        encoded = list(files.values())
        for geometry in GEOMETRIES:
            turbo, dali = (opened(name).decode(encoded, geometry) for name in ("simplejpeg", "dali"))
            np.testing.assert_array_equal(turbo.pixels, dali.pixels)

    def test_resizing_is_pillows_own(self, reference: Decoder, files: dict[str, bytes]) -> None:
        image = Image.fromarray(upright_rgb(files["jpeg 420"]))  # 333 x 217
        stretched = image.resize((64, 48), Image.Resampling.BILINEAR)
        got = reference.decode([files["jpeg 420"]], Geometry(48, 64))
        np.testing.assert_array_equal(got.pixels[0], np.asarray(stretched))
        # torchvision: Resize(256) gives int(256 * 333 / 217) = 392 x 256, CenterCrop(224) cuts at 84, 16.
        cropped = image.resize((392, 256), Image.Resampling.BILINEAR).crop((84, 16, 84 + 224, 16 + 224))
        got = reference.decode([files["jpeg 420"]], Geometry(224, 224, fit="crop"))
        np.testing.assert_array_equal(got.pixels[0], np.asarray(cropped))

    @pytest.mark.parametrize("geometry", GEOMETRIES[:4], ids=str)
    def test_the_gpu_paths_resize(
        self, reference: Decoder, files: dict[str, bytes], photos: list[Image.Image], geometry: Geometry
    ) -> None:
        """The calls that "mixed" makes on a GPU, on DALI's CPU backend."""
        if importlib.util.find_spec("nvidia.dali") is None:
            pytest.skip("nvidia.dali is not installed: pip install 'kdaudit[dali]'")
        from kdaudit.decoder.dali import DaliDecoder

        encoded = [data for name, data in files.items() if name.startswith(("jpeg", "png"))]
        decoder = DaliDecoder(resize_in_dali=True)
        got, want = decoder.decode(encoded, geometry), reference.decode(encoded, geometry)
        assert got.reasons == want.reasons
        error = errors(got.pixels, want.pixels)
        assert error[:, 1:-1, 1:-1].max() <= DALI_INNER_MAX + TORCH_MAX
        assert error.mean() <= DALI_MEAN
        size = native(files["jpeg 420"])
        np.testing.assert_array_equal(
            decoder.decode([files["jpeg 420"]], size).pixels[0], upright_rgb(files["jpeg 420"])
        )


class TestBatches:
    def test_alone_or_together_is_the_same(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        encoded = list(files.values())
        geometry = Geometry(80, 72, fit="crop")
        together = decoder.decode(encoded, geometry)
        for i, data in enumerate(encoded):
            np.testing.assert_array_equal(decoder.decode([data], geometry).pixels[0], together.pixels[i])

    def test_held_memory_is_flushed_on_the_way(
        self, decoder: Decoder, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded = list(files.values())
        want = decoder.decode(encoded, Geometry(50, 60))
        monkeypatch.setattr("kdaudit.decoder.rows._PENDING_BYTES", 500_000)
        monkeypatch.setattr("kdaudit.decoder.dali._PIXELS_AT_ONCE", 200_000)
        np.testing.assert_array_equal(decoder.decode(encoded, Geometry(50, 60)).pixels, want.pixels)

    @pytest.mark.parametrize("name", ["pillow", "simplejpeg", "dali"])
    def test_threads_inside_change_nothing(
        self, opened: Callable[..., Decoder], files: dict[str, bytes], name: str
    ) -> None:
        encoded = [*files.values(), b"", b"no"]
        one, three = (opened(name, threads).decode(encoded, Geometry(40, 40)) for threads in (1, 3))
        assert one.reasons == three.reasons
        np.testing.assert_array_equal(one.pixels, three.pixels)

    def test_threads_outside_change_nothing(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        encoded = [*files.values(), b"", files["jpeg 420"][:5000]]
        want = decoder.decode(encoded, Geometry(40, 40))
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: decoder.decode(encoded, Geometry(40, 40)), range(8)))
        for got in results:
            assert got.reasons == want.reasons
            np.testing.assert_array_equal(got.pixels, want.pixels)

    def test_no_images(self, decoder: Decoder) -> None:
        got = decoder.decode([], Geometry(4, 5, channels=1))
        assert got.pixels.shape == (0, 4, 5, 1)
        assert got.reasons == ()

    def test_results_own_their_memory(self, decoder: Decoder, files: dict[str, bytes]) -> None:
        geometry = native(files["jpeg 420"])
        first = decoder.decode([files["jpeg 420"]], geometry).pixels
        kept = first.copy()
        decoder.decode([files["jpeg turned 3"]], geometry)
        np.testing.assert_array_equal(first, kept)
        assert first.flags.writeable
        assert first.flags.c_contiguous
