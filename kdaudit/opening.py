"""Opening a session: which provider is there, where it runs, and the proof that it does."""

from kdaudit.engines import open_engine, profile_of
from kdaudit.errors import DeviceMissing, UsageError
from kdaudit.machine import Placement
from kdaudit.runtime import available_providers
from kdaudit.session import Session
from kdaudit.signature import Signature

ON_ONE_GPU = Placement()

PROVIDERS: tuple[str, ...] = ("auto", "cpu", "cuda", "tensorrt")


def open_session(
    model: bytes,
    signature: Signature,
    *,
    provider: str = "auto",
    threads: int = 1,
    confined: bool = False,
    placement: Placement = ON_ONE_GPU,
) -> Session:
    """Load a model and prove that it runs.

    Args:
        model: canonical bytes of an admitted model.
        signature: its input and output.
        provider: auto (the best that really works), cpu, cuda or tensorrt.
        threads: onnxruntime threads inside one run; more sessions of one thread beat one session of many.
        confined: in a worker process behind walls (`kdaudit.sandbox`): for models that came from somebody else.
        placement: on which GPUs, and how.

    Raises:
        UsageError: no such provider, or the folder for TensorRT's engines is not private.
        DeviceMissing: a demanded provider was not obtained.
        ModelRefused: KDA020 or KDA021, with onnxruntime's own first line; KDA022, it does not survive being loaded.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"no provider is called {provider!r}; choose one of {', '.join(PROVIDERS)}")
    offered = available_providers()
    # TensorRT rounds and takes minutes to build an engine: it is there for those who ask for it.
    wanted = next(name for name in ("cuda", "cpu") if name in offered) if provider == "auto" else provider
    if wanted not in offered:
        raise DeviceMissing(
            f"provider {provider} was demanded and is not there (this machine offers {', '.join(offered)}); "
            "leave --provider out or run on another machine"
        )
    # TensorRT builds an engine for each shape that it meets: it meets one, the last batch filled up.
    batch = signature.batch or placement.batch
    profile = profile_of(signature, batch) if wanted == "tensorrt" else ""
    engine = open_engine(model, wanted, threads, confined=confined, placement=placement, profile=profile)
    session = Session(engine, signature, threads, model, batch if profile else None, placement.fill(engine.provider))
    if provider not in ("auto", session.provider):
        session.close()
        raise DeviceMissing(
            f"provider {provider} was demanded and onnxruntime gave {session.provider}; "
            "run `kdaudit doctor` to see what is broken"
        )
    try:
        session.prove()
    except BaseException:
        session.close()
        raise
    return session
