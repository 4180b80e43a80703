"""The door: which decoder one gets, and what importing it costs."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from kdaudit import decoder
from kdaudit.decoder import NAMES, open_decoder
from kdaudit.decoder.header import exif_orientation, plain, sniff
from kdaudit.decoder.resize import luma, plan, resize
from kdaudit.errors import DeviceMissing, Exit, UsageError
from kdaudit.sample import Decoder, Geometry


class TestOpenDecoder:
    def test_names(self, opened: Callable[..., Decoder]) -> None:
        assert open_decoder().name == "simplejpeg"
        assert open_decoder("simplejpeg", device="cuda:3").name == "simplejpeg"
        assert open_decoder("pillow").name == "pillow"
        assert opened("dali").name == "dali-cpu"

    @pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps"])
    def test_unknown_devices(self, device: str) -> None:
        with pytest.raises(UsageError, match="cpu, cuda or cuda:N"):
            open_decoder(device=device)

    def test_unknown_names(self) -> None:
        with pytest.raises(UsageError, match="auto, pillow, simplejpeg, dali"):
            open_decoder("opencv")
        with pytest.raises(UsageError, match="at least one thread"):
            open_decoder(threads=0)
        assert NAMES[0] == "auto"

    def test_missing_dali(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nvidia.dali.experimental.dynamic", None)
        with pytest.raises(UsageError, match=r"pip install 'kdaudit\[dali\]'") as caught:
            open_decoder("dali")
        assert caught.value.exit_code == Exit.ERROR
        assert open_decoder(device="cuda").name == "simplejpeg"

    def test_missing_simplejpeg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
        with pytest.raises(UsageError, match="pip install simplejpeg"):
            open_decoder("simplejpeg")
        assert open_decoder().name == "pillow"

    def test_missing_gpu(self, opened: Callable[..., Decoder]) -> None:
        opened("dali")
        from nvidia.dali.backend import GetCUDADeviceCount

        beyond = f"cuda:{GetCUDADeviceCount()}"
        with pytest.raises(DeviceMissing, match="DALI cannot use CUDA device") as caught:
            open_decoder("dali", device=beyond)
        assert caught.value.exit_code == Exit.INCONCLUSIVE
        assert open_decoder(device=beyond).name == "simplejpeg"

    @pytest.mark.parametrize(("side", "name"), [(None, "dali"), (65, "dali"), (64, "simplejpeg"), (28, "simplejpeg")])
    def test_a_gpu_does_not_decode_small_images(
        self, side: int | None, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoder, "DaliDecoder", lambda *_given: SimpleNamespace(name="dali"))
        assert open_decoder(device="cuda", side=side).name == name
        assert open_decoder("dali", device="cuda", side=side).name == "dali"  # whoever demands it gets it

    def test_importing_is_cheap(self) -> None:
        heavy = "{'torch', 'nvidia', 'simplejpeg', 'pyarrow'}"
        code = f"import sys, kdaudit.decoder; sys.exit(bool({heavy} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestPlan:
    @pytest.mark.parametrize(
        ("size", "want"),
        [
            ((375, 500), (256, 341, 16, 58)),  # torchvision: Resize(256), CenterCrop(224)
            ((500, 375), (341, 256, 58, 16)),
            ((256, 256), (256, 256, 16, 16)),
            ((32, 32), (256, 256, 16, 16)),
            ((224, 224), (224, 224, 0, 0)),  # prepared for the network: left alone
            ((1, 1000), (256, 256000, 16, 127888)),
        ],
    )
    def test_crop(self, size: tuple[int, int], want: tuple[int, int, int, int]) -> None:
        assert plan(*size, Geometry(224, 224, fit="crop")) == want

    def test_crop_to_a_rectangle_always_fits(self) -> None:
        target = Geometry(64, 128, fit="crop")
        for height in (1, 7, 50, 73, 146, 400):
            for width in (1, 9, 64, 128, 300):
                to = plan(height, width, target)
                assert to.height >= to.top + 64
                assert to.width >= to.left + 128
                if (height, width) != (64, 128):
                    assert to.height == 73 or to.width == 146

    def test_agrees_with_torchvision(self) -> None:
        generator = np.random.default_rng(4)
        for height, width in generator.integers(1, 3000, (300, 2)).tolist():
            short, long = sorted((height, width))
            scaled = int(256 * long / short)  # torchvision's own line
            want = (256, scaled) if height <= width else (scaled, 256)
            assert plan(height, width, Geometry(224, 224, fit="crop"))[:2] == want

    def test_stretch(self) -> None:
        assert plan(17, 900, Geometry(32, 48)) == (32, 48, 0, 0)


class TestResize:
    def test_the_same_size_is_untouched(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
        for fit in ("stretch", "crop"):
            assert np.shares_memory(resize(images, Geometry(20, 30, fit=fit)), images)

    def test_luma_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), np.uint8)
        want = luma(images)
        monkeypatch.setattr("kdaudit.decoder.resize._LUMA_BLOCK", 1300)
        np.testing.assert_array_equal(luma(images), want)
        gray = np.repeat(images[..., :1], 3, axis=-1)
        np.testing.assert_array_equal(luma(gray), images[..., :1])


class TestHeader:
    def test_sniff(self, files: dict[str, bytes]) -> None:
        kinds = {"pgm": "PPM"}
        for name, data in files.items():
            first = name.split()[0]
            assert sniff(data) == kinds.get(first, first.upper())

    def test_what_is_plain(self, files: dict[str, bytes]) -> None:
        taken = {name for name, data in files.items() if plain(data) is not None}
        assert {"jpeg 420", "jpeg progressive", "jpeg restart", "jpeg gray", "jpeg turned 6"} <= taken
        assert {"jpeg comment", "png rgb", "png rgba", "png palette alpha", "png 1-bit"} <= taken
        left = set(files) - taken
        assert {"jpeg cmyk", "jpeg rgb", "png 16-bit", "png turned 6", "gif", "webp"} <= left
        head = plain(files["jpeg turned 6"])
        assert head is not None
        assert (head.height, head.width, head.orientation) == (217, 333, 6)
        assert head.upright == (333, 217)

    def test_orientation(self) -> None:
        little = b"II*\0\x08\0\0\0\x02\0" + bytes(12) + b"\x12\x01\x03\0\x01\0\0\0\x08\0\0\0"
        big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x05\0\0"
        assert exif_orientation(little) == 8
        assert exif_orientation(b"Exif\0\0" + big) == 5
        assert exif_orientation(b"II*\0\x08\0\0\0\0\0") == 1
        for cut in range(len(big) - 2):
            assert exif_orientation(big[:cut]) is None
