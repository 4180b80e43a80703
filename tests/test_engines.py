"""Where models run: providers and their options, one GPU or several, fixed shapes. What needs no GPU of it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_builders import Patterns, classifier

from kdaudit import contrast, engines, runtime, workbench
from kdaudit.admission import admit
from kdaudit.compared import concatenate
from kdaudit.comparison import Subjects, compare
from kdaudit.decoder import open_decoder
from kdaudit.engines import Fleet, open_engine, profile_of
from kdaudit.errors import DeviceMissing, Exit, ModelRefused, UsageError
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.machine import GPU_RUNS, Gpu, Placement
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.runtime import Engine, provider_options
from kdaudit.sample import Record
from kdaudit.sandbox.engine import ConfinedEngine
from kdaudit.sandbox.process import WorkerLost
from kdaudit.session import Session
from kdaudit.settings import Settings

RECIPE = "8x8x3-stretch-RGB-NCHW-unit"
PREPROCESS = Preprocess.parse(RECIPE)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "teacher.onnx"
    path.write_bytes(classifier(Patterns.draw(), RECIPE).SerializeToString())
    return admit(path)


# -- providers


def test_what_a_provider_is_told():
    assert provider_options("cpu", Gpu()) == [("CPUExecutionProvider", {})]
    (name, cuda), (last, _) = provider_options("cuda", Gpu(2, 1 << 30))
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert cuda == {"device_id": "2", "use_tf32": "0", "gpu_mem_limit": str(1 << 30)}


def test_tensorrt_serves_one_shape_and_keeps_its_engines_where_it_is_told():
    (name, trt), (second, cuda), _ = provider_options("tensorrt", Gpu(1, None, True, "x:64x3x32x32", "/private"))
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert cuda["device_id"] == trt.pop("device_id") == "1"
    assert trt == {
        "trt_fp16_enable": "1",
        "trt_profile_min_shapes": "x:64x3x32x32",
        "trt_profile_opt_shapes": "x:64x3x32x32",
        "trt_profile_max_shapes": "x:64x3x32x32",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/private",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/private",
    }
    assert provider_options("tensorrt", Gpu())[0][1] == {"device_id": "0", "trt_fp16_enable": "0"}


def test_the_profile_is_the_whole_padded_batch(teacher):
    assert profile_of(teacher.signature, 64) == "image:64x3x8x8"
    assert profile_of(replace(teacher.signature, input_shape=(None, 3, None, 8)), 64) == ""
    for name in ("a:1x1,b", "a,b", "a b", "", "ä\n"):  # a suspect model chooses its own names
        assert profile_of(replace(teacher.signature, input_name=name), 64) == ""


def counting(teacher):
    """An engine, and the sizes of the runs that it makes."""
    engine, sizes = Engine(teacher.model, "cpu", 1), []

    def run(inputs, outputs, rows=None, whole=engine._once):
        sizes.append(len(inputs["image"]))
        return whole(inputs, outputs)

    engine._once = run
    return engine, sizes


def test_a_session_of_one_shape_fills_up_the_last_batch(teacher):
    """As under TensorRT, where a batch of another size would build another engine."""
    engine, sizes = counting(teacher)
    fixed = Session(engine, teacher.signature, 1, teacher.model, 8)
    tensor = PREPROCESS.apply(Patterns.draw().copies(19)[0])
    found = fixed.settled(teacher.signature).logits(tensor)
    assert set(sizes) == {8}
    assert np.allclose(found, open_session(teacher.model, teacher.signature, provider="cpu").logits(tensor), atol=1e-4)
    assert not fixed.one_by_one
    assert fixed.signature.batch is None  # what is exported for the model keeps its free batch


@pytest.mark.parametrize("alone", [False, True])
def test_on_cuda_every_run_is_filled_up_to_one_size(teacher, alone):
    """Another size would have every convolution planned anew; a model that answers one by one has a size of its own."""
    engine, sizes = counting(teacher)
    where = Placement(batch=8)
    session = Session(engine, teacher.signature, 1, teacher.model, fill=where.fill("cuda"))
    expected = open_session(teacher.model, teacher.signature, provider="cpu")
    tensor = PREPROCESS.apply(Patterns.draw().copies(19)[0])
    expected.logits(tensor), session.logits(tensor[:3])  # what it learns first is asked about single images too
    session._asker.together = not alone
    sizes.clear()
    for n in (19, 8, 3, 1):
        assert np.allclose(
            session.settled(teacher.signature).logits(tensor[:n]), expected.logits(tensor[:n]), atol=1e-4
        )
    assert set(sizes) == ({1} if alone else {8})
    assert where.fill("cpu") is None
    assert where.fill("tensorrt") is None  # there the shape is fixed in any case


@pytest.mark.parametrize(("provider", "most"), [("CUDAExecutionProvider", GPU_RUNS), ("CPUExecutionProvider", 8)])
def test_a_gpu_has_few_runs_at_a_time(teacher, provider, most, monkeypatch):
    """Each further one would wait with a core that the decoder needs."""
    inside, together, lock = [], [], threading.Lock()
    full = threading.Barrier(most)

    class Counting:
        def get_providers(self):
            return [provider]

        def run(self, outputs, inputs):
            with lock:
                inside.append(1)
                together.append(len(inside))
            full.wait(timeout=60)  # as many as may are here, or this is an error
            with lock:
                inside.pop()
            return [np.zeros((1, 3), np.float32)]

    monkeypatch.setattr(runtime, "_load", lambda *given: Counting())
    engine = Engine(teacher.model, "cuda", 1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: engine.run({"image": np.zeros((1, 3, 8, 8), np.float32)}, ["scores"]), range(8 * most)))
    assert max(together) == most


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_threads_that_wait_for_a_gpu_are_told_to_sleep_before_anything_uses_it(teacher, provider, monkeypatch):
    import onnxruntime

    told = []

    def found(handle, device):
        handle._obj.value = 40 + device
        return 0

    def set_flags(handle, flags):
        told.append((handle.value, flags.value))

    driver = SimpleNamespace(cuDeviceGet=found, cuDevicePrimaryCtxSetFlags_v2=set_flags)

    def opened(model, options, providers):
        told.append(providers[0][0])

    monkeypatch.setattr(runtime, "_driver", lambda: driver)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    runtime._load(teacher.model, provider, 1, Gpu(device=2))
    assert told == {"cpu": ["CPUExecutionProvider"], "cuda": [(42, 4), "CUDAExecutionProvider"]}[provider]


def test_without_a_driver_nobody_is_told_anything(monkeypatch):
    monkeypatch.setattr(runtime, "_driver", lambda: None)
    runtime.sleep_while_waiting(0)


def test_tensorfloat_is_asked_for_and_only_on_a_gpu(teacher):
    assert provider_options("cuda", Gpu(tf32=True))[0][1]["use_tf32"] == "1"
    with pytest.raises(UsageError, match="--tf32 is a GPU's"):
        workbench.set_up(teacher, Settings(tf32=True, provider="cpu"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_a_demanded_gpu_that_is_not_used_ends_with_3(teacher, device, provider, monkeypatch):
    session = SimpleNamespace(provider=provider, close=lambda: None)
    monkeypatch.setattr(workbench, "choose_device", lambda wanted: device)
    monkeypatch.setattr(workbench, "open_session", lambda *given, **options: session)
    monkeypatch.setattr(workbench, "open_decoder", lambda *given, **options: None)
    settings = Settings(require_gpu=True)
    if device == "cuda" and provider != "cpu":
        assert workbench.set_up(teacher, settings).session is session
        return
    with pytest.raises(DeviceMissing, match="--require-gpu") as caught:
        workbench.set_up(teacher, settings)
    assert caught.value.exit_code == Exit.INCONCLUSIVE == 3


def test_a_control_without_the_demanded_gpu_ends_with_3():
    control = SimpleNamespace(session=SimpleNamespace(provider="cpu"))
    with pytest.raises(DeviceMissing, match="the control runs on cpu"):
        contrast.subjects(None, control, None, Settings(require_gpu=True))


def test_float16_without_tensorrt_is_refused(teacher, monkeypatch):
    with pytest.raises(UsageError, match="--provider tensorrt"):
        workbench.set_up(teacher, Settings(fp16=True, provider="cpu"))


@pytest.mark.parametrize(("rounded", "name"), [("fp16", "float16"), ("tf32", "TensorFloat-32")])
def test_what_rounding_does_is_measured_against_float32(teacher, monkeypatch, rounded, name):
    session = open_session(teacher.model, teacher.signature, provider="cpu")
    asked = []

    class Exact:
        def logits(self, tensor):
            return session.logits(tensor) * np.float32(1.01)

        def close(self):
            asked.append("closed")

    def opened(model, signature, **options):
        asked.append((options["placement"].fp16, options["placement"].tf32))
        return Exact()

    monkeypatch.setattr(contrast, "open_session", opened)
    bench = workbench.Workbench(teacher, session, open_decoder(), "cpu", 1, SimpleNamespace(preprocess=PREPROCESS))
    said = contrast._rounding(bench, Patterns.draw().copies(30)[0], Settings(**{rounded: True}))
    assert said.startswith(name)
    assert "on 30 of 30 clean images" in said
    assert 0 < float(said.split(" nats")[0].split()[-1]) < 0.1
    assert asked == [(False, False), "closed"]


# -- several GPUs


class Counting:
    """An engine that says who it is, and lets a test hold it up."""

    def __init__(self, number: int, provider: str = "cuda") -> None:
        self.number, self.provider, self.confinement = number, provider, "none"
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def run(self, inputs, outputs, rows=None):
        self.entered.set()
        self.free.wait()
        return [np.array([self.number])]


def test_whichever_has_the_least_to_do_takes_the_next():
    first, second = Counting(0), Counting(1)
    fleet = Fleet([first, second])
    first.free.clear()
    held = threading.Thread(target=lambda: fleet.run({}, []))
    held.start()
    assert first.entered.wait(10)
    assert [fleet.run({}, [])[0].item() for _ in range(3)] == [1, 1, 1]
    first.free.set()
    held.join()
    assert fleet.run({}, [])[0].item() == 0


def test_a_run_that_fails_frees_its_place():
    class Failing(Counting):
        def run(self, inputs, outputs, rows=None):
            raise ModelRefused("KDA021", "no")

    first, second = Failing(0), Counting(1)
    fleet = Fleet([first, second])
    with pytest.raises(ModelRefused):
        fleet.run({}, [])
    assert [fleet.run({}, [])[0].item()] == [1]
    second.free.clear()
    held = threading.Thread(target=lambda: fleet.run({}, []))
    second.entered.clear()
    with pytest.raises(ModelRefused):  # its turn again: nothing of the first run is left under way
        fleet.run({}, [])
    held.start()
    assert second.entered.wait(10)
    second.free.set()
    held.join()


def test_a_fleet_is_on_a_gpu_only_where_all_of_it_is():
    assert Fleet([Counting(0), Counting(1)]).provider == "cuda"
    assert Fleet([Counting(0), Counting(1, "cpu")]).provider == "cpu"


def test_more_gpus_than_there_are_end_with_3(teacher, monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 1)
    with pytest.raises(DeviceMissing, match="2 GPUs were demanded and the driver reports 1"):
        open_engine(teacher.model, "cuda", 1, confined=False, placement=Placement(gpus=2))


def test_each_gpu_has_an_engine_of_its_own_and_its_own_folder(teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "cuda_devices", lambda: 3)
    monkeypatch.setattr(engines, "gpu_architecture", lambda device: f"sm_{80 + 10 * (device > 0)}")
    loaded: list[Gpu] = []

    def one(model, provider, threads, confined, gpu, prepare):
        prepare()
        loaded.append(gpu)
        (Path(gpu.engines) / f"engine{gpu.device}").write_bytes(b"built")
        return Counting(gpu.device, provider)

    monkeypatch.setattr(engines, "_one", one)
    where = Placement(gpus=3, fp16=True)
    fleet = open_engine(teacher.model, "tensorrt", 1, confined=True, placement=where, profile="x:64x3x8x8")
    assert fleet.provider == "tensorrt"
    assert [gpu.device for gpu in loaded] == [0, 1, 2]
    assert all(gpu.fp16 and gpu.profile == "x:64x3x8x8" for gpu in loaded)
    folders = [Path(gpu.engines) for gpu in loaded]
    assert folders[0] != folders[1] == folders[2]  # the same kind of GPU, the same engines
    assert folders[0].parent == tmp_path / "kdaudit" / "engines"
    # What a second run finds is what the first has vouched for; the worker itself can vouch for nothing.
    again = engines.enginecache.open_folder(folders[0].parent, folders[0].name)
    assert [entry.name for entry in again.iterdir()] == ["engine0"]
    assert all(entry.suffix == ".json" or entry.is_dir() for entry in folders[0].parent.iterdir())


def test_a_worker_that_takes_anothers_place_reads_what_was_vouched_for(teacher):
    """The folder is looked through before every start: what the lost worker has written there is not read."""
    looked = []
    loaded = ConfinedEngine(teacher.model, "cpu", 1, 1, prepare=lambda: looked.append("again"))
    assert len(looked) == 1
    loaded.isolated().close()
    assert len(looked) == 2
    os.kill(loaded._worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        loaded.run({"image": PREPROCESS.apply(Patterns.draw().copies(2)[0])}, ["scores"])
    assert len(looked) == 3
    loaded.close()


def test_without_a_profile_no_engine_is_kept(teacher, monkeypatch):
    monkeypatch.setattr(engines, "cuda_devices", lambda: 1)
    monkeypatch.setattr(engines, "_one", lambda model, provider, threads, confined, gpu: gpu)
    assert open_engine(teacher.model, "tensorrt", 1, confined=True, placement=Placement()) == Gpu()


def test_two_workers_behind_one_session_give_the_rows_of_one(teacher, tmp_path):
    path = tmp_path / "control.onnx"
    path.write_bytes(classifier(Patterns.draw(seed=3), RECIPE).SerializeToString())
    found = admit(path)
    control = open_session(found.model, found.signature, provider="cpu")
    images, labels = Patterns.draw().images(90, seed=8)
    records = [Record(f"p{i}.png", k, data) for i, (data, k) in enumerate(zip(images, labels, strict=True))]
    asked = []

    class Asked(ConfinedEngine):
        def run(self, *given):
            asked.append(id(self))
            return super().run(*given)

    def rows(count: int):
        fleet = Fleet([Asked(teacher.model, "cpu", 1, 3) for _ in range(count)])
        session = Session(fleet, teacher.signature, 1, teacher.model)
        partners = Partners.of(Patterns.draw().copies(40, seed=5)[0], session, PREPROCESS)
        subjects = Subjects(session, control, PREPROCESS, partners, InterventionPlan(Settings().interventions))
        try:
            return concatenate(list(compare(subjects, records, open_decoder(), batch=8, workers=4)))
        finally:
            session.close()

    one = rows(1)
    asked.clear()
    two = rows(2)
    assert len(set(asked)) == 2
    assert np.ptp(one.gap) > 1
    for name in ("ids", "teacher_top1", "student_top1", "gap", "js", "divergence", "behaviour"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


# -- the one folder in which a worker may write


WRITE = """
import sys
from kdaudit.sandbox.confine import Walls, confine
inside, outside = sys.argv[1:]
level = confine(Walls(None, None, filter=False, writable=inside))
for folder in (inside, outside):
    try:
        with open(folder + "/engine", "wb") as file:
            file.write(b"x")
        print("written")
    except OSError as error:
        print(error.errno)
print(level)
"""


def test_a_worker_that_builds_engines_writes_into_its_folder_and_nowhere_else(tmp_path):
    inside, outside = tmp_path / "key", tmp_path
    inside.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(inside), str(outside)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    first, second, level = done.stdout.split()
    if "landlock" not in level:
        pytest.skip("this kernel has no Landlock")
    assert (first, second) == ("written", "13")
